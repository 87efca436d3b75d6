"""Logs and ids: one line for each request, never an input, and no fault of the log is a fault of a request."""

import io
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import httpx2
import pytest
from fastapi import Request
from served import listening
from starlette.testclient import TestClient

from service.api import create_app, log
from service.graph.compiled import Compiled
from service.repository import Repository
from service.settings import Settings

ROWS = [[0.125, -0.25, 31337.5]]


@pytest.fixture(scope="module")
def repository(folder: Path) -> Repository:
    return Repository(folder)


@pytest.fixture
def client(folder: Path, repository: Repository) -> Iterator[TestClient]:
    with TestClient(create_app(Settings(models=folder), repository), raise_server_exceptions=False) as found:
        yield found


@contextmanager
def logging_to(stream: TextIO, **settings: Any) -> Iterator[log.Writer]:
    """Log to a stream, and leave Python's logging as it was."""
    kept = logging.getLogger("thinnet").level
    writer = log.configure(Settings(**settings), stream)
    try:
        yield writer
    finally:
        writer.close()
        logging.getLogger().removeHandler(writer)
        logging.getLogger("thinnet").setLevel(kept)
        logging.captureWarnings(False)


@contextmanager
def lines(**settings: Any) -> Iterator[list[str]]:
    """Give the lines that were logged inside, once it is left."""
    found: list[str] = []
    stream = io.StringIO()
    with logging_to(stream, **settings):
        yield found
    found += stream.getvalue().splitlines()


def ask(client: TestClient, **headers: str) -> Any:
    return client.post("/predict", json={"model": "line", "inputs": ROWS, "passes": 20}, headers=headers)


def test_a_request_is_one_line_of_json(client: TestClient) -> None:
    with lines() as found:
        answer = ask(client)
    (line,) = found
    told = json.loads(line)
    assert told["request_id"] == answer.headers["x-request-id"]
    wanted = {"method": "POST", "route": "/predict", "status": 200, "reason": "ok", "model": "line"}
    wanted |= {"rows": 1, "passes": 20, "level": "info", "logger": "thinnet.access"}
    wanted |= {"bytes_in": len(answer.request.content), "bytes_out": len(answer.content)}
    assert wanted.items() <= told.items()
    assert 0 < told["ms"] < 10_000
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", told["time"])


def test_a_log_holds_no_input_no_key_and_no_path(client: TestClient) -> None:
    secrets = {"Authorization": "Bearer s3cret-key", "X-API-Key": "s3cret-key", "Cookie": "s3cret-key"}
    with lines(log_level="debug") as found:
        ask(client, **secrets)
        client.post("/predict", json={"model": "line", "inputs": [["s3cret-input", 1, 2]]}, headers=secrets)
        client.get("/s3cret-path?key=s3cret-query")
        client.get("/v2/models/s3cret-model")
    assert len(found) == 4
    assert "s3cret" not in "".join(found)
    assert "31337" not in "".join(found)


def test_an_internal_fault_is_logged_under_the_id_that_the_answer_tells(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("insides")

    with lines() as found, monkeypatch.context() as patch:
        patch.setattr(Compiled, "run", broken)
        answer = ask(client, **{"X-Request-ID": "this-one"})

    assert answer.status_code == 500
    assert "the server's log has it under this-one" in answer.json()["error"]
    assert answer.headers["x-request-id"] == "this-one"
    fault, access = map(json.loads, found)
    assert "this-one" in fault["message"]
    assert "RuntimeError: insides" in fault["exception"]
    assert (access["status"], access["reason"], access["request_id"]) == (500, "internal", "this-one")


def test_probes_are_told_where_debug_is_asked_for(client: TestClient) -> None:
    def probe() -> None:
        for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics"):
            client.get(path)

    with lines() as quiet:
        probe()
    with lines(log_level="debug") as told:
        probe()
    assert (quiet, len(told)) == ([], 5)


def test_a_level_silences_what_is_below(client: TestClient) -> None:
    with lines(log_level="error") as found:
        ask(client)
        logging.getLogger("thinnet").warning("quiet")
        logging.getLogger("thinnet").error("loud")
    assert [json.loads(line)["message"] for line in found] == ["loud"]


def test_text_is_for_terminals_and_json_for_everything_else(client: TestClient) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with logging_to(terminal):
        ask(client)
    assert re.match(r"\S+Z info POST /predict 200 reason=ok ms=", terminal.getvalue())
    with lines(log_format="text") as text:
        ask(client)
    assert "POST /predict 200" in text[0]
    forced = Terminal()
    with logging_to(forced, log_format="json"):
        ask(client)
    assert json.loads(forced.getvalue())["status"] == 200


def test_what_a_caller_sends_starts_no_line_of_its_own(client: TestClient) -> None:
    with lines(log_level="debug") as found:
        client.get("/a%0A%7B%22level%22%3A%22error%22%7D")
        client.post("/predict", json={"model": 'x\n{"level": "error"}', "inputs": ROWS})
    assert [json.loads(line)["level"] for line in found] == ["info", "info"]


class Full(io.StringIO):
    """A disk that is full for a while."""

    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError(28, "No space left on device")
        return super().write(text)


def test_a_full_disk_loses_lines_and_no_request(client: TestClient) -> None:
    disk = Full()
    with logging_to(disk) as writer:
        assert [ask(client).status_code for _ in range(5)] == [200] * 5
        until(lambda: writer.lost == 5)
        assert "thinnet_log_lines_lost 5.0" in client.get("/metrics").text
        disk.is_full = False
        assert ask(client).status_code == 200
    assert json.loads(disk.getvalue())["status"] == 200


@pytest.mark.parametrize("broken", ["closed file", "closed pipe", "full device"])
def test_a_stream_that_cannot_be_written_breaks_no_request(client: TestClient, broken: str, tmp_path: Path) -> None:
    if broken == "closed file":
        stream: TextIO = (tmp_path / "log").open("w")
        stream.close()
    elif broken == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        stream = os.fdopen(writer, "w")
    else:
        stream = open("/dev/full", "w")  # noqa: SIM115, PTH123 # closed below
    with logging_to(stream) as writer_of:
        assert ask(client).status_code == 200
        until(lambda: writer_of.lost == 1)
    with suppress(OSError):
        stream.close()


def test_a_reader_that_stands_still_holds_up_no_request(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that nobody reads is full after 64 KiB; then lines wait, and past a bound are dropped."""
    monkeypatch.setattr(log, "_MOST_WAITING", 100)
    monkeypatch.setattr(log, "_FLUSH_S", 0.1)
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream, logging_to(stream) as writer_of:
        logging.getLogger("thinnet").error("x" * 200_000)
        time.sleep(0.1)
        start = time.perf_counter()
        for _ in range(500):
            logging.getLogger("thinnet").error("y")
        assert ask(client).status_code == 200
        assert time.perf_counter() - start < 5
        assert writer_of.lost > 300
        drain = threading.Thread(target=_drain, args=(reader,), daemon=True)
        drain.start()
        until(lambda: writer_of._records.empty())
    os.close(reader)


def _drain(reader: int) -> None:
    with suppress(OSError):
        while os.read(reader, 1 << 20):
            pass


def until(holds: Any) -> None:
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_fork_goes_on_logging_and_a_closed_log_is_no_fault(tmp_path: Path) -> None:
    script = """
import logging, os, runpy
from service.settings import Settings
writer = runpy.run_path("service/api/log.py")["configure"](Settings())
logging.getLogger("thinnet").error("parent")
if child := os.fork():
    os.waitpid(child, 0)
else:
    logging.getLogger("thinnet").error("child")
    writer.close()
    os._exit(0)
writer.close()
logging.getLogger("thinnet").error("after")
print(writer.lost)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True, timeout=60
    )
    assert sorted(json.loads(line)["message"] for line in done.stderr.splitlines()) == ["child", "parent"]
    assert done.stdout == "1\n"


def test_what_cannot_be_told_silences_nothing_else() -> None:
    class Untold:
        def __str__(self) -> str:
            raise ValueError("no")

    with lines() as found:
        logging.getLogger("thinnet").error("lost", extra={"fields": {"lost": Untold()}})
        logging.getLogger("thinnet").error("told")
    assert [json.loads(line)["message"] for line in found] == ["told"]


@pytest.mark.parametrize("sent", [b"", b'{"model": "line"'], ids=["no body", "half a body"])
def test_a_caller_who_leaves_is_gone_and_no_fault(folder: Path, repository: Repository, sent: bytes) -> None:
    app = create_app(Settings(models=folder), repository)
    with lines() as found, listening(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as caller:
            caller.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + sent)
            time.sleep(0.2)
        until(
            lambda: (
                'reason="client_gone",route="/predict",status="499"} 1.0'
                in app.state.metrics.exposition("")[0].decode()
            )
        )
    (line,) = map(json.loads, found)
    assert (line["status"], line["reason"], line["bytes_in"]) == (499, "client_gone", len(sent))


def test_a_server_logs_json_to_standard_error(folder: Path) -> None:
    command = [sys.executable, "-m", "service", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stderr
    try:
        address = process.stdout.readline().split(" at ")[1].split(" ")[0]
        answer = httpx2.get(f"{address}/variants", headers={"X-Request-ID": "mine"})
        told = json.loads(process.stderr.readline())
    finally:
        process.terminate()
        rest = process.communicate(timeout=20)[1]
    assert answer.headers["x-request-id"] == told["request_id"] == "mine"
    assert (told["route"], told["status"]) == ("/variants", 200)
    assert "Traceback" not in rest


def test_every_answer_tells_what_its_time_went_into(folder: Path, repository: Repository) -> None:
    app = create_app(Settings(models=folder), repository)

    @app.get("/timed")
    async def timed(request: Request) -> None:
        request.state.queue_s, request.state.compute_s = 0.0015, 0.25

    with TestClient(app, raise_server_exceptions=False) as client:
        assert re.fullmatch(
            r"queue;dur=1\.500, compute;dur=250\.000, total;dur=\d+\.\d{3}",
            client.get("/timed").headers["server-timing"],
        )
        for path in ("/nothing", "/health/live", "/predict"):
            assert re.fullmatch(r"total;dur=\d+\.\d{3}", client.get(path).headers["server-timing"])
        found = ask(client).headers["server-timing"]
    assert found.split(", ")[-1].startswith("total;dur=")
