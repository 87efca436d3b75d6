"""Told to end, a server answers what it accepted, refuses the rest in words, and is gone in time with code 0."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import START_S, Running, running, until
from torch import nn

from service import Predictor

PASSES, ROWS = 10_000, 4000
LONG = {"inputs": [[0.1, 0.2, 0.3]] * ROWS, "passes": PASSES, "seed": 2}
ROOMY = {
    "THINNET_DRAIN_S": "15",
    "THINNET_MAX_WAIT_S": "1e9",
}  # what is refused for want of room is not the matter here
SHORT = {"inputs": [[0.1, 0.2, 0.3]], "passes": 20, "seed": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "line"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        line = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.25), nn.Linear(8, 2)).eval()
        Predictor.capture(line, torch.zeros(1, 3)).save(folder)
    return folder


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def served(request: pytest.FixtureRequest, model: Path, tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, str(model), "--workers", str(request.param), **ROOMY) as found:
        yield found


@dataclass
class Caller:
    """One that asks again and again on a connection of its own, and notes what becomes of each request."""

    server: Running
    body: dict[str, Any]
    keeps: bool
    statuses: list[int] = field(default_factory=list)
    refused: int = 0
    lost: list[str] = field(default_factory=list)

    def run(self) -> None:
        connection = self._connection()
        while connection is not None:
            try:
                connection.request("POST", "/predict", json.dumps(self.body))
                answer = connection.getresponse()
                told = json.loads(answer.read())
            except Exception as error:
                self.lost.append(repr(error))
                return
            self.statuses.append(answer.status)
            assert ("mean" if answer.status == 200 else "error") in told
            if not self.keeps or answer.will_close:
                connection.close()
                connection = self._connection()

    def _connection(self) -> HTTPConnection | None:
        connection = self.server.connect()
        try:
            connection.connect()
        except OSError:  # nobody listens any more: nothing was accepted
            self.refused += 1
            return None
        return connection


def test_under_load_nothing_that_was_accepted_is_lost(served: Running) -> None:
    callers = [Caller(served, LONG if each < 2 else SHORT, keeps=each % 2 == 0) for each in range(8)]
    threads = [threading.Thread(target=each.run) for each in callers]
    for each in threads:
        each.start()
    until(lambda: sum(len(each.statuses) for each in callers) > 50)
    began = time.monotonic()
    assert served.end() == 0
    assert time.monotonic() - began < 15
    for each in threads:
        each.join()
    assert {status for each in callers for status in each.statuses} <= {200, 503}
    assert [each.lost for each in callers if each.lost] == []
    assert all(each.refused == 1 for each in callers)
    assert '"level":"error"' not in served.err.read_text()
    assert "Traceback" not in served.err.read_text()
    answered = sum(served.err.read_text().count(f'"message":"POST /predict {status}"') for status in (200, 503))
    assert answered == sum(len(each.statuses) for each in callers), "a log that ends with its process lacks lines"


def test_what_runs_is_finished_and_an_open_connection_is_told_that_it_ends(model: Path, tmp_path: Path) -> None:
    with running(tmp_path, str(model)) as found:
        idle, busy = found.connect(), found.connect()
        idle.request("GET", "/v2/health/live")
        answer = idle.getresponse()
        assert answer.read()
        assert answer.getheader("connection") != "close"
        busy.request("POST", "/predict", json.dumps(LONG))
        time.sleep(0.3)
        found.send(signal.SIGTERM)
        until(lambda: ends(idle), 5)
        answer = busy.getresponse()
        assert (answer.status, answer.getheader("connection")) == (200, "close")
        assert len(json.loads(answer.read())["mean"]) == ROWS
        idle.close()
        busy.close()
        assert found.process.wait(10) == 0


def test_what_takes_too_long_is_refused_in_words_and_the_end_is_in_time(model: Path, tmp_path: Path) -> None:
    with running(tmp_path, str(model), THINNET_DRAIN_S="1") as found:
        calls = [found.connect() for _ in range(6)]
        for each in calls:
            each.request("POST", "/predict", json.dumps({**LONG, "scope": "row"}))
        time.sleep(0.5)
        began = time.monotonic()
        found.send(signal.SIGTERM)
        answers = [each.getresponse() for each in calls]
        assert {answer.status for answer in answers} <= {200, 429, 503}
        assert 503 in {answer.status for answer in answers}, "all was done: ask for more"
        for answer in answers:
            assert ("mean" if answer.status == 200 else "error") in json.loads(answer.read())
        for each in calls:
            each.close()
        assert found.process.wait(10) == 0
        assert time.monotonic() - began < 2.5


def test_told_twice_it_ends_at_once(model: Path, tmp_path: Path) -> None:
    with running(tmp_path, str(model)) as found:
        call = found.connect()
        call.request("POST", "/predict", json.dumps({**LONG, "scope": "row"}))
        time.sleep(0.3)
        found.send(signal.SIGINT)
        until(lambda: not listens(found.port), 5)
        began = time.monotonic()
        assert found.end(signal.SIGINT) == 128 + signal.SIGINT
        call.close()
        assert time.monotonic() - began < 2


def test_a_full_disk_for_all_that_is_said_ends_nothing(model: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "service", "serve", str(model), "--port", str(port)]
    with Path("/dev/full").open("w") as full:
        process = subprocess.Popen(command, stdout=full, stderr=full)
    found = Running(process, Path(), Path(), port)
    try:
        until(lambda: listens(port), START_S)
        assert found.ask("POST", "/predict", SHORT)[0] == 200
        assert len(found.workers()) == 1
        assert found.end() == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("after_s", [0.4, 1.0, 2.0])
def test_told_to_end_while_it_starts_it_ends_with_code_0(model: Path, tmp_path: Path, after_s: float) -> None:
    with running(tmp_path, str(model), wait=False) as found:
        until(lambda: handles(found.process.pid, signal.SIGTERM))
        time.sleep(after_s - 0.4)
        assert found.end() == 0
        assert "Traceback" not in found.told()
        assert not list(Path("/dev/shm").glob(f"thinnet-counts-{found.process.pid}-*"))


def ends(idle: HTTPConnection) -> bool:
    """Ask once more on an open connection: whether the answer says that it was the last one."""
    idle.request("GET", "/v2/health/live")
    answer = idle.getresponse()
    assert answer.status == 200
    assert answer.read()
    return answer.getheader("connection") == "close"


def handles(pid: int, number: int) -> bool:
    """Whether a process takes a signal itself, or holds it back to look at."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    masks = dict(line.split(":\t") for line in lines if line.startswith(("SigCgt", "SigBlk")))
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks.values())


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
