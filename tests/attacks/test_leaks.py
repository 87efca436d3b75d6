"""What a request says is compared, never opened, fetched or run; and an error shows nothing of the insides."""

import base64
import json
import pickle
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest
from guarded import Serve

INSIDES = re.compile(
    r"Traceback|\.py\b|File \"|line \d+, in|0x[0-9a-f]{6,}|<[\w.]+ object|<class|\b\w+(?:Error|Exception)\b|"
    r"\b(?:torch|numpy|pydantic|starlette|fastapi|orjson|aten|site-packages)\b|/(?:usr|home|root|tmp|opt|srv|etc|var)/"
)
RUN = "__import__('os').system('touch /tmp/canary')"


class Loads:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit(9)",)


class Watch:
    """The events of Python's own audit that would be a request's doing."""

    seen: ClassVar[list[str]] = []
    on: ClassVar[bool] = False
    events = (
        "open",
        "exec",
        "compile",
        "import",
        "os.",
        "shutil.",
        "subprocess.",
        "socket.connect",
        "urllib.",
        "pickle.",
    )

    @classmethod
    def hook(cls, event: str, arguments: tuple[Any, ...]) -> None:
        is_sample = event == "open" and arguments[0] == "/proc/self/statm"  # the memory's gauge, every few seconds
        if cls.on and event.startswith(cls.events) and not is_sample:
            cls.seen.append(f"{event} {arguments!r:.200}")

    @classmethod
    @contextmanager
    def watching(cls) -> Iterator[list[str]]:
        cls.seen, cls.on = [], True
        try:
            yield cls.seen
        finally:
            cls.on = False


sys.addaudithook(Watch.hook)


@pytest.fixture(scope="module")
def listener() -> Iterator[socket.socket]:
    """A server that nobody should call."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        found.settimeout(0.01)
        yield found


def places(port: int) -> list[Any]:
    """Return what would be opened, fetched, imported or run where it were taken at its word."""
    return [
        f"http://127.0.0.1:{port}/model",
        f"//127.0.0.1:{port}/model",
        f"\\\\127.0.0.1:{port}\\model",
        "file:///etc/passwd",
        "/etc/passwd",
        "../../etc/passwd",
        "..",
        "line/../line",
        "line/1/program.pt2",
        "line\x00.toml",
        "os.system",
        "service.api:create_app",
        "torch.hub.load",
        RUN,
        "{{7*7}}",
        "${jndi:ldap://127.0.0.1/x}",
        "%s%n",
        {"__reduce__": ["os.system", ["x"]]},
        {"py/object": "os.system"},
        {"$ref": f"http://127.0.0.1:{port}/"},
        base64.b64encode(pickle.dumps(Loads())).decode(),
    ]


def malicious(port: int) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Give (method, path, headers, body) of requests that put a place everywhere that takes one."""
    infer = {"name": "input", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}
    for place in places(port):
        for field in ("model", "version", "variant", "scope", "estimator", "precision", "seed", "p", "inputs"):
            yield "POST", "/predict", {}, json.dumps({"model": "line", "inputs": [[1, 2, 3]], field: place}).encode()
        for extra in ({"quantities": [place]}, {"sites": {"1": place}}, {"sites": {str(place): 0.1}}, {"url": place}):
            yield "POST", "/predict", {}, json.dumps({"inputs": [[1, 2, 3]], **extra}).encode()
        for parameter in ("variant", "sites", "shared_memory_region", "binary_data_size"):
            body = {"inputs": [infer], "parameters": {parameter: str(place)}}
            yield "POST", "/v2/models/line/infer", {}, json.dumps(body).encode()
            given = {**infer, "parameters": {parameter: str(place)}}
            yield "POST", "/v2/models/line/infer", {}, json.dumps({"inputs": [given]}).encode()
        for name in ("name", "datatype"):
            yield "POST", "/v2/models/line/infer", {}, json.dumps({"inputs": [{**infer, name: str(place)}]}).encode()
        quoted = "".join(f"%{byte:02x}" for byte in str(place).encode())
        for path in (f"/v2/models/{quoted}", f"/v2/models/{quoted}/infer", f"/v2/models/line/versions/{quoted}"):
            yield "GET", path, {}, b""
        for header in (
            "Content-Type",
            "Content-Encoding",
            "Accept",
            "X-Forwarded-For",
            "Inference-Header-Content-Length",
        ):
            yield "POST", "/predict", {header: str(place).replace("\x00", "")}, b'{"inputs": [[1, 2, 3]]}'
            yield "POST", "/v2/models/line/infer", {header: str(place).replace("\x00", "")}, json.dumps(body).encode()
    for kind in ("application/x-pickle", "application/vnd.bento+pickle", "application/octet-stream"):
        for path in ("/predict", "/v2/models/line/infer"):
            yield "POST", path, {"Content-Type": kind}, pickle.dumps(Loads())
    for path in (
        "/v2/repository/index",
        "/v2/repository/models/line/load",
        "/models",
        "/v2/models/line/load",
        "/v2/trace",
    ):
        yield "POST", path, {}, b"{}"


Sent = tuple[str, str, dict[str, str], bytes]


@pytest.fixture(scope="module")
def exchanges(serve: Serve, listener: socket.socket) -> tuple[list[tuple[Sent, Any]], list[str]]:
    """What malicious requests are answered, and what Python's audit saw meanwhile, once all is loaded."""
    sent = list(malicious(listener.getsockname()[1]))
    with serve() as client:
        for method, path, headers, body in sent[::3]:
            client.request(method, path, headers=headers, content=body)
        with Watch.watching() as seen:
            answers = [client.request(method, path, headers=head, content=body) for method, path, head, body in sent]
    return list(zip(sent, answers, strict=True)), seen


def test_the_watch_sees_what_it_should() -> None:
    with Watch.watching() as seen:
        eval("1")
        Path("/dev/null").read_bytes()
        pickle.loads(pickle.dumps(Path))
    assert {each.split()[0] for each in seen} >= {"compile", "exec", "open", "pickle.find_class"}


def test_nothing_that_a_request_names_is_opened_fetched_imported_or_run(
    exchanges: tuple[list[tuple[Sent, Any]], list[str]], listener: socket.socket
) -> None:
    found, seen = exchanges
    assert len(found) > 500
    assert seen == []
    with pytest.raises(TimeoutError, match="timed out"):
        listener.accept()


def test_what_a_request_names_is_refused_or_ignored_and_never_a_fault(
    exchanges: tuple[list[tuple[Sent, Any]], list[str]],
) -> None:
    statuses = [answer.status_code for _, answer in exchanges[0]]
    assert set(statuses) <= {200, 400, 404, 405, 413}
    assert sum(status >= 400 for status in statuses) > len(statuses) / 2


def test_an_error_shows_nothing_of_the_insides(exchanges: tuple[list[tuple[Sent, Any]], list[str]]) -> None:
    """What the caller said may be said back to it."""
    for (_, path, headers, body), answer in exchanges[0]:
        if answer.status_code >= 400:
            assert list(answer.json()) == ["error"]
            said = f"{unquote(path)} {headers} {body!r}"
            shown = [each for each in INSIDES.findall(answer.json()["error"]) if each not in said]
            assert not shown, (said, answer.text)


def test_the_insides_are_known_when_they_are_seen() -> None:
    for text in (
        "Traceback (most",
        "in x.py",
        "KeyError: 1",
        "<a.B object",
        "at torch level",
        "/tmp/x",
        "0x7f9ca422f310",
    ):
        assert INSIDES.search(text), text
