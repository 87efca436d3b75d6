"""What a proxy says by itself is said as thinnet says it, and a body that is too large gets no further than it."""

from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.envelope import Envelope
from service.api.front import Front, middlewares
from service.settings import Settings


class Proxy:
    """A proxy that reads a body and passes its size on, or answers by itself."""

    def __init__(self, answer: ASGIApp | None = None) -> None:
        self._answer = answer
        self.passed_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            self.passed_bytes += len(message.get("body", b""))
            more = message.get("more_body", False)
        answer = self._answer or Envelope(JSONResponse({"bytes": self.passed_bytes}))
        await answer(scope, receive, send)


def fronted(proxy: Proxy, **limits: int) -> TestClient:
    return TestClient(Front(proxy, Settings(**limits)))


def test_a_replicas_answer_passes_as_it_is() -> None:
    answer = fronted(Proxy()).post("/predict", content=b"abc", headers={"X-Request-ID": "mine"})
    assert (answer.status_code, answer.json()) == (200, {"bytes": 3})
    assert answer.headers.get_list("x-request-id") == ["mine"]


@pytest.mark.parametrize(
    ("said", "status", "message"),
    [
        (429, 429, "as many requests wait for a replica as may"),
        (408, 504, "no replica answered in time"),
        (404, 503, "no replica serves now"),
        (503, 503, "no replica serves now"),
        (500, 503, "is gone; ask again"),
    ],
)
def test_a_proxys_own_refusal_is_an_error_of_ours(said: int, status: int, message: str) -> None:
    answer = fronted(Proxy(PlainTextResponse("Traceback: …", said))).post("/predict", content=b"abc")
    assert answer.status_code == status
    assert message in answer.json()["error"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert ("retry-after" in answer.headers) == (said in (404, 429, 503))


def test_a_replicas_refusal_is_not_taken_for_the_proxys() -> None:
    refusal = Envelope(JSONResponse({"error": "there is no model 'x'"}, 404))
    answer = fronted(Proxy(refusal)).post("/predict", content=b"abc")
    assert (answer.status_code, answer.json()) == (404, {"error": "there is no model 'x'"})


def test_the_proxys_own_probes_pass() -> None:
    assert fronted(Proxy(PlainTextResponse("success"))).get("/-/healthz").text == "success"


@pytest.mark.parametrize("content", [b"x" * 2000, iter([b"x" * 500] * 4)], ids=["declared", "in chunks"])
def test_a_body_that_is_too_large_is_refused_here(content: Any) -> None:
    proxy = Proxy()
    answer = fronted(proxy, max_body_bytes=1000).post("/predict", content=content)
    assert answer.status_code == 413
    assert "more than the 1000 bytes" in answer.json()["error"]
    assert proxy.passed_bytes <= 1000


def test_all_bodies_together_are_bounded() -> None:
    answer = fronted(Proxy(), max_held_bytes=100).post("/predict", content=b"x" * 200)
    assert (answer.status_code, "ask again soon" in answer.json()["error"]) == (429, True)


def test_a_proxy_is_told_its_limits_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THINNET_MAX_BODY_BYTES", "7")
    (front,) = middlewares()
    assert front.kwargs["settings"].max_body_bytes == 7
