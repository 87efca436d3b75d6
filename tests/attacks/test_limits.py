"""Every limit, met over a real socket: what is too large, deep, slow or much is refused in time, as JSON."""

import gzip
import json
import select
import socket
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import anyio
import orjson
import pytest
from guarded import Serve
from hypothesis import given
from hypothesis import strategies as st
from served import server

from service.api.bodies import Held, Hold
from service.api.guard import Guard
from service.api.keys import Keys
from service.api.limits import limits_of, unit_of
from service.errors import BadRequest, Overloaded
from service.settings import Settings
from service.wire import is_deeper, parse_json

BODY = b'{"inputs": [[1, 2, 3]]}'
WAIT_S = 10.0
LATE_S = 0.7
LIMITS = {
    "THINNET_MAX_REQUESTS": "4",
    "THINNET_MAX_CONNECTIONS": "12",
    "THINNET_MAX_TARGET_BYTES": "300",
    "THINNET_MAX_HEADER_BYTES": "2000",
    "THINNET_HEADER_TIMEOUT_S": str(LATE_S),
    "THINNET_BODY_TIMEOUT_S": str(LATE_S),
    "THINNET_WRITE_TIMEOUT_S": str(LATE_S),
    "THINNET_MAX_BODY_BYTES": "100000",
    "THINNET_MAX_HELD_BYTES": "150000",
}
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"


class Caller:
    """One connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), WAIT_S)

    def send(self, *data: bytes) -> "Caller":
        self.socket.sendall(b"".join(data))
        return self

    def status(self) -> int:
        return self.answer()[0]

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and JSON of the next answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._some()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._some()
        return int(first.split()[1]), headers, json.loads(body)

    def ends(self) -> bool:
        """Return whether the server ends the connection, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def read_on(self, count: int) -> None:
        """Read so many bytes more."""
        while count > 0:
            count -= len(self._some())

    def _some(self) -> bytes:
        found = self.socket.recv(65536)
        assert found, "the server ended the connection"
        return found


@pytest.fixture(scope="module")
def port(line: Path) -> Iterator[int]:
    with server(str(line), OMP_NUM_THREADS="1", **LIMITS) as address:
        yield int(address.rsplit(":", 1)[1])


@contextmanager
def calling(port: int) -> Iterator[Caller]:
    caller = Caller(port)
    with caller.socket:
        yield caller


def works(port: int) -> bool:
    """Return whether the server answers a plain request, as it should after everything."""
    with calling(port) as caller:
        return caller.send(HEAD, b"Content-Length: %d\r\n\r\n" % len(BODY), BODY).status() == 200


@pytest.fixture(autouse=True)
def _goes_on(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "port" in request.fixturenames:
        deadline = time.monotonic() + WAIT_S
        while not works(request.getfixturevalue("port")):
            assert time.monotonic() < deadline


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
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
        "",
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


def test_a_head_that_does_not_come_is_given_up(port: int) -> None:
    with calling(port) as caller:
        status, headers, body = caller.send(b"GET /v2 HTTP/1.1\r\nHo").answer()
        assert (status, headers["connection"]) == (408, "close")
        assert "head did not arrive within 0.7 s" in body["error"]
        assert caller.ends()


def test_a_head_in_drops_is_given_up_all_the_same(port: int) -> None:
    began = time.monotonic()
    with calling(port) as caller:
        caller.send(b"GET /")
        caller.socket.settimeout(0.02)
        for _ in range(200):
            caller.send(b"a")
            try:
                assert caller.status() == 408
                break
            except TimeoutError:
                continue
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


def test_a_body_in_drops_is_given_up_all_the_same(port: int) -> None:
    began = time.monotonic()
    with calling(port) as caller:
        caller.send(HEAD, b"Content-Length: 1000\r\n\r\n")
        caller.socket.settimeout(0.02)
        for _ in range(200):
            caller.send(b" ")
            try:
                assert caller.status() == 408
                break
            except TimeoutError:
                continue
    assert time.monotonic() - began < LATE_S + 1


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


def test_a_flood_of_pipelined_requests_is_answered_one_by_one(port: int) -> None:
    with calling(port) as caller:
        caller.send(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        data = b""
        while data.count(b'{"live":true}') < 200:
            data += caller._some()
    assert data.count(b"HTTP/1.1 200 OK") == 200


# nesting


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


texts = st.text(st.sampled_from('[]{}"\\a,: \né'), max_size=8)
documents = st.recursive(
    st.none() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=40,
)


@given(documents, st.integers(0, 6), st.booleans())
def test_nesting_is_counted_as_a_parser_would(value: Any, limit: int, ascii_only: bool) -> None:
    body = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert is_deeper(body, limit) == (depth_of(value) > limit)


def test_nesting_is_counted_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.wire._BLOCK_BYTES", 3)
    value = [[["[[[["], [[{"]": [1, '\\"[']}]]]] * 20
    body = json.dumps(value).encode()
    assert is_deeper(body, depth_of(value) - 1)
    assert not is_deeper(body, depth_of(value))


@given(st.binary(max_size=60), st.integers(0, 3))
def test_nesting_of_any_bytes_is_counted(body: bytes, limit: int) -> None:
    assert is_deeper(body, limit) in (True, False)


def test_the_parsers_own_limit_is_deeper_than_ours() -> None:
    assert orjson.loads(b"[" * 1024 + b"]" * 1024)
    with pytest.raises(orjson.JSONDecodeError, match="depth limit exceeded"):
        orjson.loads(b"[" * 1025 + b"]" * 1025)
    largest = next(each.le for each in Settings.model_fields["max_json_depth"].metadata if hasattr(each, "le"))
    assert largest < 1024


@pytest.mark.parametrize("opening", [b"[", b'{"a":', b'[{"a":', b'"[", ['])
def test_depth_is_refused_before_it_is_parsed_and_quickly(opening: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRequest, match="nested deeper than the 64 lists and objects that are read; flatten it"):
        parse_json(opening * 1_000_000)
    assert time.perf_counter() - began < 1


def test_wide_bodies_are_counted_in_a_fraction_of_their_parsing() -> None:
    body = json.dumps([[0.123456, 1.5, -2.25]] * 30_000).encode()

    def least_s(work: Any, *arguments: Any) -> float:
        times = []
        for _ in range(5):
            began = time.perf_counter()
            work(*arguments)
            times.append(time.perf_counter() - began)
        return min(times)

    assert least_s(is_deeper, body, 64) < least_s(orjson.loads, body)


@pytest.mark.parametrize("depth", [8, 20])
def test_depth_is_a_setting_on_both_protocols(serve: Serve, depth: int) -> None:
    client, deep = serve(max_json_depth=depth), "[" * depth + "1" + "]" * depth
    infer = f'{{"inputs": [{{"name": "input", "datatype": "FP32", "shape": [1, 3], "data": {deep}}}]}}'
    for path, body in (("/predict", f'{{"inputs": {deep}}}'), ("/v2/models/line/infer", infer)):
        answer = client.post(path, content=body)
        assert answer.status_code == 400
        assert f"nested deeper than the {depth}" in answer.json()["error"]


def test_brackets_in_text_and_in_raw_tensors_are_no_nesting(serve: Serve) -> None:
    client = serve()
    text = json.dumps({"inputs": [[1, 2, 3]], "variant": "[" * 100})
    assert "[[[[" in client.post("/predict", content=text).json()["error"]
    raw = b"[" * 12 * 50  # 50 rows of three floats
    header = {"name": "input", "datatype": "FP32", "shape": [50, 3], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [header]}).encode()
    answer = client.post(
        "/v2/models/line/infer", content=head + raw, headers={"Inference-Header-Content-Length": str(len(head))}
    )
    assert answer.status_code == 200, answer.text


# what is told of them


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


# when to ask again


def test_who_is_turned_away_is_told_how_much_is_queued(serve: Serve) -> None:
    entered, leave = Event(), Event()

    def wait() -> None:
        entered.set()
        assert leave.wait(WAIT_S)

    with serve(max_requests=1) as client, ThreadPoolExecutor(1) as pool:
        client.app.add_api_route("/wait", wait)  # type: ignore[attr-defined] # it is our app
        client.app.state.serving.scheduler = SimpleNamespace(queued_cost_s=7.2)  # type: ignore[attr-defined] # the same
        first = pool.submit(client.get, "/wait")
        assert entered.wait(WAIT_S)
        late = client.get("/v2")
        assert (late.status_code, late.headers["Retry-After"]) == (429, "8")
        assert client.get("/v2/health/ready").status_code == 200
        leave.set()
        assert first.result().status_code == client.get("/v2").status_code == 200
