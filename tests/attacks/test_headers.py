"""What every answer carries: its request's id, headers that keep browsers from harm; and a page that loads its own."""

import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi.responses import StreamingResponse
from guarded import Serve
from starlette.testclient import TestClient

from service.api.faults import public
from service.api.keys import Keys, make_key
from service.graph.compiled import Compiled
from service.predictor import Predictor

BODY = {"inputs": [[1, 2, 3]]}
STRICT = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@pytest.fixture(scope="module")
def client(serve: Serve) -> TestClient:
    return serve(max_body_bytes=1000)


def broken(*_: object, **__: object) -> None:
    raise RuntimeError("secret /srv/models/line in class Insides")


def test_a_fault_that_is_ours_is_named_by_its_class(client: TestClient) -> None:
    assert client.get("/v2/models/nobody").headers["X-Thinnet-Fault"] == "ModelNotFound"
    assert client.post("/predict", content=b" " * 2000).headers["X-Thinnet-Fault"] == "TooLarge"
    assert "X-Thinnet-Fault" not in client.get("/nothing").headers


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/v2/health/live", b"", 200),
        ("GET", "/limits", b"", 200),
        ("GET", "/docs", b"", 200),
        ("GET", "/docs/swagger-ui.css", b"", 200),
        ("GET", "/openapi.json", b"", 200),
        ("GET", "/", b"", 307),
        ("POST", "/predict", b'{"inputs": [[1, 2, 3]]}', 200),
        ("POST", "/predict", b"{", 400),
        ("GET", "/nothing", b"", 404),
        ("GET", "/predict", b"", 405),
        ("POST", "/predict", b" " * 2000, 413),
        ("GET", "/" + "a" * 5000, b"", 414),
    ],
)
def test_every_answer_is_sealed(client: TestClient, method: str, path: str, content: bytes, status: int) -> None:
    answer = client.request(method, path, content=content, follow_redirects=False)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in STRICT} == STRICT
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-eval" not in policy
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


def test_refusals_of_keys_and_internal_faults_are_sealed_too(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = make_key("alice")
    keys = Keys([("alice", bytes.fromhex(line.split()[1]), None)])
    monkeypatch.setattr(Compiled, "run", broken)
    for answer, status in (
        (serve(keys).get("/limits"), 401),
        (serve().post("/predict", json=BODY), 500),
    ):
        assert answer.status_code == status
        assert {name: answer.headers.get(name) for name in STRICT} == STRICT
        assert answer.headers["X-Request-Id"]


@pytest.mark.parametrize("sane", ["a", "7f9c-1", "trace:1.2_3", "0" * 128])
def test_a_callers_own_id_is_kept(client: TestClient, sane: str) -> None:
    assert client.get("/v2", headers={"X-Request-Id": sane}).headers["X-Request-Id"] == sane


@pytest.mark.parametrize(
    "odd", ["", " ", "a b", "a\tb", "../x", "<script>", "é", "%0d%0a", '"', "0" * 129, "-x", "$(x)"]
)
def test_an_id_that_could_harm_a_log_is_replaced(client: TestClient, odd: str) -> None:
    answer = client.get("/v2", headers={"X-Request-Id": odd.encode()})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["X-Request-Id"])


def test_no_two_requests_have_one_id(client: TestClient) -> None:
    assert len({client.get("/v2").headers["X-Request-Id"] for _ in range(50)}) == 50


def test_an_internal_fault_is_its_id_in_body_header_and_log(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Compiled, "run", broken)
    with caplog.at_level(logging.ERROR, "thinnet"):
        answer = client.post("/predict", json=BODY, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 500
    assert answer.json() == {"error": "an internal fault; the server's log has it under mine-1"}
    assert answer.headers["X-Request-Id"] == "mine-1"
    logged = [record for record in caplog.records if record.name == "thinnet"]
    assert [record.getMessage() for record in logged] == ["POST /predict: internal fault mine-1"]
    assert logged[0].exc_info is not None


def test_a_fault_is_logged_once_and_its_inputs_never(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Compiled, "run", broken)
    client.post("/predict", json={"inputs": [[1.2345, 2, 3]]}, headers={"Authorization": "Bearer thinnet_mine"})
    assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1
    assert "1.2345" not in caplog.text
    assert "thinnet_mine" not in caplog.text


def test_half_an_answer_is_cut_off_not_finished(serve: Serve) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise RuntimeError("on the way")

    async def stream() -> StreamingResponse:
        return StreamingResponse(half())

    app = serve().app
    app.add_api_route("/half", stream)  # type: ignore[attr-defined] # it is our app
    with pytest.raises(RuntimeError, match="on the way"):
        TestClient(app).get("/half")


def test_a_caller_who_leaves_before_the_end_of_the_body_is_no_fault(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    arriving = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
    sent: list[Any] = []

    async def receive() -> Any:
        return next(arriving)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    anyio.run(client.app, scope, receive, send)
    assert sent == []
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_the_documentation_loads_only_what_the_server_has(client: TestClient) -> None:
    page = client.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert sorted(loaded) == ["data:,", "docs/start.js", "docs/swagger-ui-bundle.js", "docs/swagger-ui.css"]
    assert not re.search(r"<script(?! src=)|\son\w+=|https?:", page.text)
    for name, kind in (("start.js", "text/javascript"), ("swagger-ui-bundle.js", "text/javascript")):
        answer = client.get(f"/docs/{name}")
        assert answer.headers["Content-Type"].startswith(kind)
    assert 'url: "openapi.json"' in client.get("/docs/start.js").text
    assert "SwaggerUIBundle" in client.get("/docs/swagger-ui-bundle.js").text
    assert "script-src 'self';" in page.headers["Content-Security-Policy"]
    assert client.get("/redoc").status_code == client.get("/docs/oauth2-redirect").status_code == 404


@pytest.mark.parametrize(
    "path", ["/docs/../docs.py", "/docs/%2e%2e/__init__.py", "/docs/main.py", "/docs/", "/docs//etc"]
)
def test_the_documentations_files_are_a_fixed_few(client: TestClient, path: str) -> None:
    assert client.get(path, follow_redirects=False).status_code == 404


def test_no_answer_leads_to_where_the_request_says(client: TestClient) -> None:
    headers = {"Host": "evil.example", "X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    for path in ("/", "/predict/", "/v2/models/", "/docs/", "//evil.example/", "/docs", "/openapi.json"):
        answer = client.get(path, headers=headers, follow_redirects=False)
        assert "evil.example" not in answer.headers.get("Location", "")
        assert answer.status_code == 404 or "evil.example" not in answer.text


@pytest.mark.parametrize(
    ("reason", "told"),
    [
        ("/srv/models/line/1/program.pt2: its SHA-256 is 0", "program.pt2: its SHA-256 is 0"),
        ("File '/usr/lib/python3/x.py', line 3", "File 'x.py', line 3"),
        ("(/a/b) and /c/d e", "(b) and d e"),
        ("32 rows / 5 passes, and/or 1/2", "32 rows / 5 passes, and/or 1/2"),
    ],
)
def test_a_reason_is_told_without_folders(reason: str, told: str) -> None:
    assert public(reason) == told


def test_why_a_model_cannot_be_served_is_told_without_where_it_lies(serve: Serve, tmp_path: Path) -> None:
    Predictor.load(serve.folder / "line").save(tmp_path / "good")
    Predictor.load(serve.folder / "line").save(tmp_path / "bad")
    (tmp_path / "bad" / "1" / "program.pt2").write_bytes(b"not a program")
    client = Serve(tmp_path)()
    for answer in (
        client.get("/v2/health/ready"),
        client.get("/v2/models/bad"),
        client.post("/predict", json={"model": "bad", **BODY}),
    ):
        assert answer.status_code == 503
        assert "program.pt2 has 13 bytes" in answer.json()["error"]
        assert str(tmp_path) not in answer.text
        assert "/" not in answer.json()["error"]
