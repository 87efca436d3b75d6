"""Time has limits too: heads, bodies and readers that do not come are given up, and slow ones waited for."""

import json
import select
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest
from caller import CHUNKED, HEAD, LATE_S, WAIT_S, Caller, calling

from service.api.guard import Guard
from service.api.keys import Keys
from service.settings import Settings


def test_a_head_that_does_not_come_is_given_up(port: int) -> None:
    with calling(port) as caller:
        status, headers, body = caller.send(b"GET /v2 HTTP/1.1\r\nHo").answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "head did not arrive within 0.7 s" in body["error"]
        assert caller.ends()


@pytest.mark.parametrize(
    ("start", "drop"), [(b"GET /", b"a"), (HEAD + b"Content-Length: 1000\r\n\r\n", b" ")], ids=["a head", "a body"]
)
def test_what_comes_in_drops_is_given_up_all_the_same(port: int, start: bytes, drop: bytes) -> None:
    began = time.monotonic()
    with calling(port) as caller:
        caller.send(start)
        caller.socket.settimeout(0.02)
        while time.monotonic() < began + LATE_S + 1:
            caller.send(drop)
            with suppress(TimeoutError):
                assert caller.status() == 408
                break
    assert time.monotonic() - began < LATE_S + 1


def test_a_caller_who_says_nothing_is_let_go(port: int) -> None:
    with calling(port) as caller:
        assert caller.ends()


def test_a_second_head_is_given_as_little_time_as_the_first(port: int) -> None:
    with calling(port) as caller:
        assert caller.send(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n").status() == 200
        assert caller.send(b"GET /v2 HT").status() == 408


@pytest.mark.parametrize("how", [b"Content-Length: 1000\r\n\r\n", CHUNKED + b"5\r\n"])
def test_a_body_that_does_not_come_is_given_up(port: int, how: bytes) -> None:
    with calling(port) as caller:
        status, headers, body = caller.send(HEAD, how, b"{").answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "body did not arrive within 0.7 s" in body["error"]
        assert caller.ends()


def test_the_rest_of_a_refused_body_is_not_read_for_ever(port: int) -> None:
    with calling(port) as caller:
        assert caller.send(HEAD, b"Content-Length: 100000000\r\n\r\n", b" ").status() == 413
        began = time.monotonic()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # noqa: PT012
            while time.monotonic() < began + WAIT_S:
                caller.send(b" ")
                time.sleep(0.02)
    assert time.monotonic() - began < LATE_S + 1


LARGE = json.dumps({"inputs": [[1, 2, 3]] * 1000, "passes": 2000, "quantities": ["samples"]}).encode()
LARGE_BYTES = 15_000_000  # at least, of its answer: more than the sockets hold


def begun(caller: Caller) -> int:
    """Ask for a large answer, and return how many bytes of it are still to come."""
    caller.send(HEAD, b"Content-Length: %d\r\n\r\n" % len(LARGE), LARGE)
    data = b""
    while b"\r\n\r\n" not in data:
        data += caller.socket.recv(100)
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"200 OK" in head
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    assert length > LARGE_BYTES
    return length - len(body)


def test_a_caller_who_does_not_read_is_let_go(port: int) -> None:
    with calling(port) as caller:
        begun(caller)
        hung_up = select.poll()
        hung_up.register(caller.socket, 0)
        assert hung_up.poll(3000 * LATE_S) == [(caller.socket.fileno(), select.POLLERR | select.POLLHUP)]


def test_a_caller_who_reads_slowly_is_waited_for(port: int) -> None:
    with calling(port) as caller:
        left = begun(caller)
        until = time.monotonic() + 3 * LATE_S
        while time.monotonic() < until:
            left -= len(caller.socket.recv(50_000))
            time.sleep(0.05)
        assert left > LARGE_BYTES / 2
        caller.read_on(left)


def flooded(caller: Caller, data: bytes, most: int) -> int:
    """Send the same data again and again until the server ends it, and return how many bytes that were."""
    sent = 0
    with suppress(BrokenPipeError, ConnectionResetError):
        while sent < most:
            caller.send(data)
            sent += len(data)
    return sent


MOST = 64 << 20  # far more than the sockets hold


def test_trailers_without_an_end_are_given_up(port: int) -> None:
    with calling(port) as caller:
        caller.send(HEAD, CHUNKED, b"0\r\n")
        assert flooded(caller, b"X: aaaaaaaa\r\n" * 1000, MOST) < MOST


def test_a_request_without_an_end_behind_another_is_given_up(port: int) -> None:
    body = json.dumps({"inputs": [[1, 2, 3]] * 100, "passes": 10_000, "scope": "row"}).encode()
    with calling(port) as caller:
        caller.send(HEAD, b"Content-Length: %d\r\n\r\n" % len(body), body, b"GET /")
        assert flooded(caller, b"a" * 10_000, MOST) < MOST


def test_the_time_of_a_body_ends_with_it() -> None:
    arriving = iter([0.0, 0.2])
    came: list[str] = []

    async def receive() -> Any:
        wait_s = next(arriving)
        await anyio.sleep(wait_s)
        return {"type": "http.disconnect"} if wait_s else {"type": "http.request", "body": b"{}", "more_body": False}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        came.extend([(await receive())["type"], (await receive())["type"]])

    async def send(message: Any) -> None:
        came.append(message)

    scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []}
    anyio.run(Guard(app, Settings(body_timeout_s=0.05), Keys()), scope, receive, send)
    assert came == ["http.request", "http.disconnect"]
