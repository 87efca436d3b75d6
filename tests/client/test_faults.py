"""Whatever stands at an address, or comes back from it, is one typed fault that says what, where, and the cure."""

import json
from pathlib import Path
from typing import Any

import pytest
from scripted import HANG_UP, Script, said
from served import listening

from service.api import create_app
from service.api.keys import Keys, make_key
from service.client import Client, predicting
from service.client.tensors import HEADER_LENGTH
from service.errors import (
    BadRequest,
    DeadlineExceeded,
    ModelNotFound,
    NotReady,
    RemoteFault,
    ServerUnreachable,
    ThinnetError,
    TooLarge,
    TooManyRequests,
    Unauthorized,
)
from service.repository import Repository
from service.settings import Settings

ROWS = {"x": [[1.0, 2.0]]}
PAGE = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
ASKED = "check the address, that thinnet serves it, and any proxy between"


def ask(url: str) -> Any:
    with Client(url, retries=0) as client:
        return client.models()


def inference(header: Any, raw: bytes, length: int | None = None) -> bytes:
    """Return an answer of the Open Inference Protocol, as it should be or not."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(content) if length is None else length
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(content) + len(raw)}\r\n{HEADER_LENGTH}: {size}\r\n\r\n"
    return head.encode() + content + raw


def tensor(size: int, shape: list[int], datatype: str = "FP32") -> dict[str, Any]:
    return {"name": "mean", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("localhost:8000", "'localhost:8000' is not a server's address; write http://host:port"),
        ("ftp://host", "is not a server's address"),
        ("http://", "is not a server's address"),
        ("", "is not a server's address"),
        ("file:///etc/passwd", "is not a server's address"),
        ("http://host:99999", r"is not a server's address \(Port out of range 0-65535\)"),
        ("http://host/?x=1", "leave out what follows its path"),
    ],
)
def test_only_a_servers_address_is_opened(url: str, told: str) -> None:
    with pytest.raises(BadRequest, match=told):
        Client(url)


def test_a_password_in_an_address_is_in_no_message() -> None:
    with pytest.raises(ServerUnreachable) as caught:
        ask("http://me:secret@127.0.0.1:1")
    with pytest.raises(BadRequest) as refused:
        Client("ftp://me:secret@host")
    assert "secret" not in str(caught.value) + str(refused.value)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(BadRequest, match="the API key is none") as caught:
        Client("http://host", api_key=key)
    assert not key or key not in str(caught.value)


def test_nobody_there_is_told_with_the_address() -> None:
    told = r"http://127\.0\.0\.1:1/v2/models cannot be reached: .*refused; check host and port"
    with pytest.raises(ServerUnreachable, match=told):
        ask("http://127.0.0.1:1")


def test_a_name_that_no_host_has_is_told() -> None:
    with pytest.raises(ServerUnreachable, match=r"http://nobody\.invalid/v2/models cannot be reached"):
        ask("http://nobody.invalid")


def test_tls_where_there_is_none_is_told(address: str) -> None:
    with pytest.raises(ServerUnreachable, match="does not speak TLS there: try http:// instead of https://"):
        ask(address.replace("http://", "https://"))


def test_a_prefix_and_a_slash_at_the_end_are_kept_and_a_wrong_one_is_told(folder: Path, address: str) -> None:
    app = create_app(Settings(models=folder), Repository(folder))
    with listening(app, "/under/here") as inside:
        assert "line" in ask(f"{inside}/")
    with pytest.raises(ThinnetError, match="there is no /prefix/v2/models; the routes are listed at /docs"):
        ask(f"{address}/prefix/")


def test_a_key_opens_what_is_locked(folder: Path, tmp_path: Path) -> None:
    made, line = make_key("alice")
    (tmp_path / "keys").write_text(line)
    app = create_app(Settings(models=folder), Repository(folder), Keys.read(tmp_path / "keys"))
    with listening(app) as address:
        with Client(address, api_key=made) as client:
            assert client.limits().key == "alice"
        with pytest.raises(Unauthorized, match="an API key is needed"):
            ask(address)


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (said(502, PAGE), RemoteFault, rf"answered 502 Bad Gateway with text/html \('502 Bad Gateway'\).*{ASKED}"),
        (said(404, PAGE), RemoteFault, "answered 404 Not Found with text/html"),
        (said(404, {"detail": "Not Found"}), RemoteFault, "answered 404 Not Found with application/json"),
        (said(413, PAGE), TooLarge, "answered 413 Request Entity Too Large with text/html"),
        (said(429, PAGE), TooManyRequests, "answered 429 Too Many Requests"),
        (said(503, PAGE), NotReady, "answered 503 Service Unavailable"),
        (said(504, PAGE), DeadlineExceeded, "answered 504 Gateway Timeout"),
        (said(401, ""), Unauthorized, "answered 401 Unauthorized with an empty body"),
        (said(799, PAGE), RemoteFault, r"answered 799 \(no status of HTTP\)"),
        (said(302, "", "Location: https://other/"), RemoteFault, "redirects to https://other/, which is not followed"),
        (said(500, {"error": "an internal fault"}, "X-Request-ID: n7"), RemoteFault, r"fault \(.* 500, request n7\)"),
        (said(404, {"error": "no"}, "X-Thinnet-Fault: ModelNotFound"), ModelNotFound, r"no \(.* answered 404\)"),
        (said(404, {"error": "no"}, "X-Thinnet-Fault: TooLarge"), ThinnetError, "no"),
        (said(200, PAGE), RemoteFault, r"answers with text/html \('502 Bad Gateway'\), not with JSON"),
        (said(200, [1]), RemoteFault, "answers with JSON that is no object"),
        (said(200, {}), RemoteFault, "lists no models"),
        (said(200, {"models": 3}), RemoteFault, "lists no models"),
        (HANG_UP, ServerUnreachable, "ended the connection before its answer was whole"),
        (said(200, {"models": ["a"]})[:-3], ServerUnreachable, "ended the connection before its answer was whole"),
        (b"HELLO\r\n\r\n", ServerUnreachable, "ended the connection before its answer was whole"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\njunk",
            RemoteFault,
            "its answer not read",
        ),
    ],
)
def test_what_is_no_answer_of_thinnets_is_told(
    script: Script, answer: bytes, error: type[ThinnetError], told: str
) -> None:
    server = script(answer)
    with pytest.raises(error, match=told) as caught:
        ask(server.url)
    assert server.url in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (inference({"outputs": [tensor(8, [2])]}, b"1234"), r"mean \[2\] needs 8 bytes, and 4 are left"),
        (inference({"outputs": [tensor(4, [2])]}, b"1234"), r"mean \[2\] needs 8 bytes"),
        (inference({"outputs": []}, b"1234"), "4 bytes are left over"),
        (inference({"outputs": [tensor(4, [1], "FP33")]}, b"1234"), "KeyError"),
        (inference({"outputs": [tensor(4, [-1])]}, b"1234"), "needs -4 bytes"),
        (inference({"outputs": 3}, b""), "gives no tensors as the Open Inference Protocol has them"),
        (inference({}, b""), "gives no tensors"),
        (inference(b"junk", b""), "not with JSON"),
        (inference({}, b"", 99), "answers with 2 bytes, and says that the first 99 are JSON"),
        (inference({"outputs": [tensor(4, [1])]}, b"1234"), "gives no prediction of thinnet's"),
    ],
)
def test_tensors_that_were_cut_or_are_not_as_agreed_are_told(script: Script, answer: bytes, told: str) -> None:
    with Client(script(answer).url, retries=0) as client, pytest.raises(RemoteFault, match=told):
        client.predict(ROWS, model="m")


def test_another_server_of_the_protocol_is_told_apart(script: Script) -> None:
    triton = {"name": "m", "versions": ["1"], "platform": "onnx", "inputs": [], "outputs": []}
    with (
        Client(script(said(200, triton)).url, retries=0) as client,
        pytest.raises(RemoteFault, match=r"describes no model of thinnet's \(KeyError\('version'\)\)"),
    ):
        client.describe("m")


def test_a_server_that_is_silent_is_told(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicting, "_GRACE_S", 0.2)
    server = script(said(200, {}), wait_s=10)
    with Client(server.url) as client, pytest.raises(DeadlineExceeded, match=r"did not answer within 0\.3 s"):
        client.predict(ROWS, model="m", timeout_s=0.1)
    assert len(server.asked) == 1
