"""Every limit, met over a real socket: what is too large or too much is refused before it is held, as JSON."""

import gzip
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from threading import Event

import pytest
from caller import CHUNKED, HEAD, WAIT_S, calling
from guarded import Serve

from service.api.bodies import Held, Hold
from service.api.limits import limits_of, unit_of
from service.errors import Overloaded
from service.settings import Settings

REFUSED = {
    "a long path": (b"GET /" + b"a" * 300 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "at most 300 are read"),
    "a long query": (b"GET /v2?" + b"a" * 300 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "path and query have 303 bytes"),
    "a large header": (HEAD + b"X: " + b"a" * 2000 + b"\r\n\r\n", 431, "at most 2000 are read; send fewer"),
    "many headers": (HEAD + b"X: a\r\n" * 400 + b"\r\n", 431, "at most 2000 are read"),
    "a path without an end": (b"GET /" + b"a" * 3000, 431, "more than the 2300 bytes that are read"),
    "headers without an end": (HEAD + b"X: a\r\n" * 600, 431, "more than the 2300 bytes that are read"),
    "a body said to be large": (HEAD + b"Content-Length: 100001\r\n\r\n", 413, "the body has 100001 bytes"),
    "a body said to be endless": (HEAD + b"Content-Length: " + b"9" * 19 + b"\r\n\r\n", 413, "at most 100000 bytes"),
    "chunks past the limit": (
        HEAD + CHUNKED + b"c351\r\n" + b" " * 50001 + b"\r\n" + b"c351\r\n" + b" " * 50001,
        413,
        "the body is larger",
    ),
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "no whole request of HTTP/1.1"),
    "a length that is none": (HEAD + b"Content-Length: -1\r\n\r\n", 400, "no whole request"),
    "two lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\n", 400, "no whole request"),
    "a chunk's size that is none": (HEAD + CHUNKED + b"zz\r\n", 400, "no whole request"),
    "a transfer that is none": (HEAD + b"Transfer-Encoding: gzip\r\n\r\nx", 400, "no whole request"),
    "a fold in a header": (HEAD + b"X: a\r\n\tb\x00\r\n\r\n", 400, "no whole request"),
}


@pytest.mark.parametrize(("data", "status", "told"), REFUSED.values(), ids=REFUSED)
def test_what_is_too_large_or_no_request_is_told_so_as_json(port: int, data: bytes, status: int, told: str) -> None:
    with calling(port) as caller:
        found, headers, body = caller.send(data).answer()
    assert found == status
    assert headers["content-type"] == "application/json"
    assert list(body) == ["error"]
    assert told in body["error"]


def packed(count: int) -> bytes:
    return gzip.compress(b" " * count)


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("gzip", packed(500 << 20), 413),
        ("deflate", zlib.compress(b" " * (200 << 20)), 413),
        ("gzip", gzip.compress(packed(50 << 20)), 400),  # what is inside is no JSON: nothing is unpacked twice
        ("gzip, gzip", packed(10), 400),
        ("gzip", packed(99_000)[:-9], 400),
        ("gzip", b"\x1f\x8b\x08\x00" + b"\x00" * 1000, 400),
    ],
    ids=["a bomb", "a deflated bomb", "a bomb in a bomb", "two packings", "cut short", "damaged"],
)
def test_a_packed_body_is_no_way_around(port: int, encoding: str, body: bytes, status: int) -> None:
    began = time.monotonic()
    with calling(port) as caller:
        head = b"Content-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (encoding.encode(), len(body))
        caller.send(HEAD, head)
        try:
            caller.send(body)
        except (BrokenPipeError, ConnectionResetError):
            assert status == 413
        assert caller.status() == status
    assert time.monotonic() - began < 2


def test_requests_past_their_number_are_turned_away_before_their_body_and_health_is_not(port: int) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(calling(port)) for _ in range(4)]
        for caller in held:
            caller.send(HEAD, b"Content-Length: 100\r\n\r\n", b"{")
        time.sleep(0.1)
        late = stack.enter_context(calling(port))
        status, headers, body = late.send(HEAD, b"Content-Length: 100\r\n\r\n").answer()
        assert status == 429
        assert headers["retry-after"] == "1"
        assert "4 requests are being answered, as many as are taken on at once" in body["error"]
        health = stack.enter_context(calling(port))
        assert health.send(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n").status() == 200
        assert [caller.status() for caller in held] == [408] * 4


def test_connections_past_their_number_are_turned_away(port: int) -> None:
    with ExitStack() as stack:
        for _ in range(12):
            stack.enter_context(calling(port))
        late = stack.enter_context(calling(port))
        status, headers, body = late.answer()
        assert (status, headers["retry-after"]) == (429, "1")
        assert "as many connections as are taken on" in body["error"]


def test_all_bodies_together_are_bounded(port: int) -> None:
    with ExitStack() as stack:
        first, second = (stack.enter_context(calling(port)) for _ in range(2))
        first.send(HEAD, b"Content-Length: 90000\r\n\r\n", b" " * 80_000)
        time.sleep(0.1)
        status, headers, body = second.send(HEAD, b"Content-Length: 90000\r\n\r\n", b" " * 80_000).answer()
        assert (status, headers["retry-after"]) == (429, "1")
        assert "hold more than 150000 bytes" in body["error"]
        assert first.status() == 408
    with calling(port) as caller:  # what was held is free again
        assert caller.send(HEAD, b"Content-Length: 90000\r\n\r\n", b" " * 90_000).status() == 400


def test_what_unpacks_is_held_as_it_is_unpacked(serve: Serve) -> None:
    client = serve(max_held_bytes=1_000_000)
    for _ in range(3):
        answer = client.post("/predict", content=packed(2_000_000), headers={"Content-Encoding": "gzip"})
        assert answer.status_code == 429
    assert client.post("/predict", content=packed(900_000), headers={"Content-Encoding": "gzip"}).status_code == 400


def test_a_hold_is_given_back_whatever_happens() -> None:
    held = Held(10)
    with pytest.raises(Overloaded, match="more than 10 bytes"), Hold(held) as hold:  # noqa: PT012
        hold.take(6)
        hold.take(5)
    assert held.held_bytes == 0


def test_a_flood_of_pipelined_requests_is_answered_one_by_one(port: int) -> None:
    with calling(port) as caller:
        caller.send(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        data = b""
        while data.count(b'{"live":true}') < 200:
            data += caller._some()
    assert data.count(b"HTTP/1.1 200 OK") == 200


def test_every_setting_that_is_a_limit_is_told_with_its_unit(serve: Serve) -> None:
    told = serve(max_rows=7, body_timeout_s=1.5).get("/limits").json()["limits"]
    named = {name for name in Settings.model_fields if name.startswith("max_") or name.endswith(("_s", "_bytes"))}
    assert set(told) == named
    assert told["max_rows"] == {"value": 7, "unit": "rows", "what": "most rows of one request"}
    assert (told["body_timeout_s"]["value"], told["body_timeout_s"]["unit"]) == (1.5, "s")
    assert told["max_body_bytes"]["unit"] == told["memory_bytes"]["unit"] == "bytes"
    assert told["max_row_passes"]["unit"] == "row-passes"


@pytest.mark.parametrize("name", ["models", "host", "port", "keys_file", "allow_anonymous"])
def test_what_is_no_limit_is_not_told(name: str) -> None:
    assert unit_of(name) is None
    assert name not in limits_of(Settings())


class _Busy:
    """A scheduler with work for some seconds."""

    in_flight, queued_cost_s, stalled_s, closed = 1, 7.2, 0.0, False


def test_who_is_turned_away_is_told_how_much_is_queued(serve: Serve) -> None:
    entered, leave = Event(), Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(WAIT_S)

    with serve(max_requests=1) as client, ThreadPoolExecutor(1) as pool:
        client.app.add_api_route("/wait", wait)  # type: ignore[attr-defined] # it is our app
        client.app.state.serving.scheduler = _Busy()  # type: ignore[attr-defined] # the same
        first = pool.submit(client.get, "/wait")
        assert entered.wait(WAIT_S)
        late = client.get("/v2")
        assert (late.status_code, late.headers["Retry-After"]) == (429, "8")
        assert client.get("/v2/health/ready").status_code == 200
        leave.set()
        assert first.result().status_code == client.get("/v2").status_code == 200
