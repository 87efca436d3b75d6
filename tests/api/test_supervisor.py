"""Keeping processes: replaced when they end, killed when stuck, drained when told; with jobs that serve nothing."""

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from processes import until

from service.api.generation import Deaths
from service.api.heartbeats import Heartbeats, Pulse, State
from service.api.supervisor import RETIRE, Supervisor
from service.errors import InvalidModelFolder, NotReady

WORKERS = 2


@dataclass(frozen=True)
class Waiting:
    """A job that waits to be told to end; `how` may be changed by a file of that name."""

    home: Path
    generation: int = 0
    deaf: bool = False
    broken: bool = False
    dies: bool = False
    frozen: bool = False

    def __call__(self, pulse: Pulse) -> None:
        if self.broken:
            raise NotReady("it cannot start")
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        told: list[int] = []
        for number in (signal.SIGTERM, RETIRE):
            signal.signal(number, signal.SIG_IGN if self.deaf else lambda number, frame: told.append(number))
        pulse.mark(State.READY)
        while not told:
            if not self.frozen:
                pulse.beat()
            time.sleep(0.01)
        (self.home / f"ended-{os.getpid()}-{self.generation}-{told[0]}").touch()

    def renewed(self, pause: Callable[[], None]) -> "Waiting":
        pause()
        if (self.home / "refuse").exists():
            raise InvalidModelFolder("it is broken")
        if (self.home / "crash").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, generation=self.generation + 1, dies=(self.home / "dies").exists())

    def started(self) -> None:
        (self.home / "started").touch(exist_ok=False)

    def ended(self) -> None:
        (self.home / "closed").touch(exist_ok=False)

    def lost(self, pid: int) -> None:
        (self.home / f"lost-{pid}").touch(exist_ok=False)


@dataclass
class Held:
    """A supervisor in a process of its own."""

    pid: int
    table: Heartbeats
    home: Path
    code: int | None = None

    def pids(self) -> list[int]:
        return [self.table.pid(slot) for slot in self.table.slots(self.table.generation)]

    def well(self) -> bool:
        return not self.table.workers_dead()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        deadline = time.monotonic() + 10
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return self.code

    def names(self, start: str) -> list[str]:
        return sorted(each.name for each in self.home.glob(f"{start}*"))

    def says(self) -> str:
        return (self.home / "told").read_text()


def _supervise(job: Waiting, table: Heartbeats, drain_s: float, stall_s: float) -> None:
    Supervisor._freeze = lambda self: None  # type: ignore[method-assign] # to collect what other tests left takes long
    code = 99
    try:
        with (job.home / "told").open("w", buffering=1) as sys.stderr:
            logging.getLogger("thinnet").addHandler(logging.StreamHandler(sys.stderr))
            try:
                code = Supervisor(job, table, drain_s, stall_s).run()
            except BaseException:
                traceback.print_exc()
    finally:
        os._exit(code)


@contextmanager
def held(job: Waiting, drain_s: float = 5.0, stall_s: float = 30.0, wait: bool = True) -> Iterator[Held]:
    table = Heartbeats(WORKERS, stall_s)
    pid = os.fork()
    if not pid:
        _supervise(job, table, drain_s, stall_s)
    found = Held(pid, table, job.home)
    try:
        if wait:
            until(lambda: (job.home / "started").exists(), 10)
        yield found
    finally:
        if found.code is None:
            found.send(signal.SIGTERM)
            found.send(signal.SIGTERM)
            found.wait()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_end_it_lets_every_worker_finish_and_ends_with_code_0(tmp_path: Path, number: int) -> None:
    with held(Waiting(tmp_path)) as found:
        pids = found.pids()
        found.send(number)
        assert found.wait() == 0
    assert found.names("ended") == sorted(f"ended-{pid}-0-{signal.SIGTERM}" for pid in pids)
    assert found.names("closed") == ["closed"]
    assert found.names("lost") == sorted(f"lost-{pid}" for pid in pids)


def test_a_worker_that_does_not_end_is_killed_in_time_and_the_code_is_0(tmp_path: Path) -> None:
    with held(Waiting(tmp_path, deaf=True), drain_s=0.3) as found:
        began = time.monotonic()
        found.send(signal.SIGTERM)
        assert found.wait() == 0
        assert 0.3 <= time.monotonic() - began < 3
    assert "it has not ended within 0.3 s" in found.says()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_twice_it_ends_at_once(tmp_path: Path, number: int) -> None:
    with held(Waiting(tmp_path, deaf=True), drain_s=60) as found:
        pids = found.pids()
        found.send(signal.SIGTERM)
        until(lambda: (tmp_path / "closed").exists(), 5)
        found.send(number)
        assert found.wait() == 128 + number
        assert not any(map(alive, pids))


def test_a_killed_worker_is_replaced_at_once_and_told_of_until_then(tmp_path: Path) -> None:
    with held(Waiting(tmp_path)) as found:
        assert found.well()
        first, second = found.pids()
        os.kill(first, signal.SIGKILL)
        until(lambda: first not in found.pids() and found.well(), 5)
        assert found.pids()[1] == second
        assert not alive(first)
        assert found.names("lost") == [f"lost-{first}"]
    assert f"worker {first} was ended by SIGKILL; another follows in 0.0 s" in found.says()


def test_workers_that_end_again_and_again_are_forked_ever_later() -> None:
    deaths = Deaths()
    assert [deaths.wait_s(float(second)) for second in range(5)] == [0.0] * 5
    assert [deaths.wait_s(5.0) for _ in range(9)] == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert deaths.wait_s(90.0) == 0.0, "what is a minute ago is forgotten"


def test_workers_that_cannot_live_do_not_keep_the_processor_busy(tmp_path: Path) -> None:
    with held(Waiting(tmp_path, dies=True), wait=False) as found:
        until(lambda: len(found.names("lost")) >= 6, 10)
        time.sleep(0.4)
        assert len(found.names("lost")) <= 8
        assert len(found.table.workers_dead()) == WORKERS
        found.send(signal.SIGTERM)
        assert found.wait() == 0


def test_a_machine_without_room_for_a_process_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fork, supervisor = os.fork, os.getpid()

    def full() -> int:
        if os.getpid() != supervisor and not (tmp_path / "room").exists():
            (tmp_path / "room").touch()
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", full)
    with held(Waiting(tmp_path)) as found:
        assert found.well()
    assert "no worker can be forked: Resource temporarily unavailable; again in 1 s" in found.says()


def test_a_job_that_cannot_start_ends_the_server_with_its_reason(tmp_path: Path) -> None:
    with held(Waiting(tmp_path, broken=True), wait=False) as found:
        assert found.wait() == 1
    assert "error: it cannot start" in found.says()
    assert found.names("started") == []


def test_a_worker_without_progress_is_told_of_killed_and_replaced(tmp_path: Path) -> None:
    with held(Waiting(tmp_path), stall_s=1.0) as found:
        first = found.pids()[0]
        os.kill(first, signal.SIGSTOP)
        until(lambda: first not in found.pids() and found.well(), 8)
        assert not alive(first)
    assert f"worker {first} is killed: its event loop has made no progress" in found.says()


def test_a_new_generation_takes_over_before_the_old_one_ends(tmp_path: Path) -> None:
    with held(Waiting(tmp_path)) as found:
        old = found.pids()
        found.send(signal.SIGHUP)
        until(lambda: found.table.generation == 1, 5)
        assert found.well(), "it serves only once it is ready"
        assert not set(found.pids()) & set(old)
        until(lambda: len(found.names("ended")) == WORKERS, 5)
        assert found.names("ended") == sorted(f"ended-{pid}-0-{RETIRE}" for pid in old)
        found.send(signal.SIGHUP)
        until(lambda: found.table.generation == 2 and not any(map(alive, old)), 5)
        assert found.names("closed") == []


@pytest.mark.parametrize(
    ("fault", "told"),
    [("refuse", "error: it is broken"), ("crash", "who tried was ended by SIGKILL"), ("dies", "the old ones stay")],
)
def test_a_generation_that_breaks_leaves_the_old_one_serving(tmp_path: Path, fault: str, told: str) -> None:
    with held(Waiting(tmp_path)) as found:
        old = found.pids()
        (tmp_path / fault).touch()
        found.send(signal.SIGHUP)
        until(lambda: "the old ones stay" in found.says(), 5)
        assert told in found.says()
        (tmp_path / fault).unlink()
        assert found.pids() == old
        assert found.well()
        found.send(signal.SIGHUP)
        until(lambda: found.table.generation == 1 and found.well(), 5)


def test_orphans_are_reaped(tmp_path: Path) -> None:
    """As process 1 of a container it is given what others leave; here it is made their reaper."""
    import ctypes

    @dataclass(frozen=True)
    class Leaving(Waiting):
        def __call__(self, pulse: Pulse) -> None:
            if not os.fork():
                if not os.fork():
                    (self.home / f"orphan-{os.getpid()}").touch()
                    time.sleep(0.2)
                os._exit(0)
            super().__call__(pulse)

    assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER, which a fork does not inherit
    try:
        with held(Leaving(tmp_path)) as found:
            until(lambda: len(found.names("orphan")) == WORKERS, 5)
    finally:
        ctypes.CDLL(None).prctl(36, 0, 0, 0, 0)
