"""The folder for metrics is there as long as somebody counts in it, and what a killed server left is cleared."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service import start

KILLED = """
import os, signal, sys, time
from pathlib import Path
from service import start
start._MEMORY = Path(sys.argv[1])
with start.prepared():
    if sys.argv[2:] and not (child := os.fork()):
        time.sleep(60)
        os._exit(0)
    print(child if sys.argv[2:] else 0, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Give the folders that are there while a server of this process starts."""
    monkeypatch.setattr(start, "_MEMORY", tmp_path)
    monkeypatch.delenv(start.METRICS, raising=False)
    for name in ("OPENBLAS_NUM_THREADS", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "1")

    def found() -> list[str]:
        with start.prepared():
            own = Path(os.environ[start.METRICS])
            return sorted(each.name for each in tmp_path.iterdir() if each != own)

    return found


def killed(place: Path, *more: str) -> int:
    """Start a server's processes, kill the first, and return the number of the one that it forked."""
    environment = {name: value for name, value in os.environ.items() if name != start.METRICS}
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(place), *more], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    told = process.stdout.readline()
    process.stdout.close()
    assert process.wait(20) == -signal.SIGKILL
    return int(told)


def test_what_a_killed_server_left_is_cleared_by_the_next(tmp_path: Path, folders: Callable[[], list[str]]) -> None:
    killed(tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert folders() == []


def test_what_a_process_still_counts_in_stays(tmp_path: Path, folders: Callable[[], list[str]]) -> None:
    """The server is killed and a worker of it lives: nothing is taken from under it."""
    worker = killed(tmp_path, "and fork")
    (left,) = tmp_path.iterdir()
    try:
        assert folders() == [left.name]
    finally:
        os.kill(worker, signal.SIGKILL)


def test_servers_beside_one_another_leave_each_other_alone(tmp_path: Path, folders: Callable[[], list[str]]) -> None:
    with start.prepared():
        first = Path(os.environ.pop(start.METRICS))
        assert folders() == [first.name]
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_a_servers_stays(tmp_path: Path, folders: Callable[[], list[str]]) -> None:
    (tmp_path / "thinnet-models").mkdir()
    (tmp_path / "thinnet-counts-1-linked").symlink_to(tmp_path / "thinnet-models")
    (tmp_path / "thinnet-counts-2-file").touch()
    assert folders() == ["thinnet-counts-1-linked", "thinnet-counts-2-file", "thinnet-models"]
