"""Several processes serve as one does: the same answers, one copy of the weights, ready again when one is killed."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

import pytest
import torch
from processes import Running, running, until
from torch import nn

from service import Predictor
from service.api.server import keep_to_share, run
from service.cluster.replica import made
from service.errors import NotReady
from service.settings import Settings

ROOT = Path(__file__).parents[2]
WORKERS = 3
SIDE = 5000
WEIGHTS_KB = SIDE * SIDE * 4 // 1024
BIG = {"model": "big", "inputs": [[0.5] * SIDE], "passes": 20, "seed": 3}
SMALL = {"model": "small", "inputs": [[1.0, 2.0, 3.0]], "passes": 50, "seed": 4}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        big = nn.Sequential(nn.Linear(SIDE, SIDE), nn.Dropout(0.2), nn.Linear(SIDE, 2)).eval()
        Predictor.capture(big, torch.zeros(1, SIDE)).save(folder / "big")
        small = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.25), nn.Linear(8, 2)).eval()
        Predictor.capture(small, torch.zeros(1, 3)).save(folder / "small")
    return folder


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("said"), str(models), "--workers", str(WORKERS)) as found:
        yield found


def memory_kb(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) for line in lines}


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_each_models_weights_are_in_memory_once(served: Running) -> None:
    answers = [served.ask("POST", "/predict", BIG) for _ in range(4 * WORKERS)]
    assert {status for status, _ in answers} == {200}
    found = [memory_kb(pid) for pid in served.workers()]
    assert len(found) == WORKERS
    for each in found:
        assert each["Rss"] > WEIGHTS_KB, "the weights are not mapped at all"
        assert each["Private_Dirty"] < WEIGHTS_KB / 2, "they are copied"
    own = memory_kb(served.process.pid)
    assert own["Pss"] + sum(each["Pss"] for each in found) < own["Rss"] + WORKERS * WEIGHTS_KB / 2


def test_every_worker_gives_the_answer_that_one_process_gives(served: Running, models: Path) -> None:
    alone = Predictor.load(models / "small").predict(torch.tensor(SMALL["inputs"]), passes=50, seed=4)
    answers = [served.ask("POST", "/predict", SMALL) for _ in range(8 * WORKERS)]
    assert {status for status, _ in answers} == {200}
    for _, answer in answers:
        assert answer == answers[0][1]
        torch.testing.assert_close(torch.tensor(answer["mean"]), alone.mean)
        torch.testing.assert_close(torch.tensor(answer["variance"]), alone.variance)


def test_what_is_served_is_said_once(served: Running) -> None:
    assert served.told().count(" at http://") == 1
    assert len(served.workers()) == WORKERS
    assert threads(served.process.pid) == 1, "a thread would not be there after a fork"


def test_a_killed_worker_costs_only_what_it_was_doing_and_is_there_again(served: Running) -> None:
    first = served.workers()[0]
    stop, good, cut = threading.Event(), [0], [0]

    def call() -> None:
        while not stop.is_set():
            try:
                assert served.ask("POST", "/predict", SMALL)[0] == 200
                good[0] += 1
            except (OSError, HTTPException):
                cut[0] += 1  # that worker had it

    callers = [threading.Thread(target=call) for _ in range(4)]
    for each in callers:
        each.start()
    time.sleep(0.2)
    os.kill(first, signal.SIGKILL)
    until(lambda: first not in served.workers() and len(served.workers()) == WORKERS, 5)
    until(served.ready, 5)
    stop.set()
    for each in callers:
        each.join()
    assert good[0] > 10
    assert cut[0] <= len(callers)


def test_workers_whose_supervisor_is_killed_end_and_the_next_start_clears_up(models: Path, tmp_path: Path) -> None:
    with running(tmp_path, str(models / "small"), "--workers", "2") as found:
        pids = found.workers()
        (counts,) = Path("/dev/shm").glob(f"thinnet-counts-{found.process.pid}-*")
        found.process.kill()
        found.process.wait()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 10)
    with running(tmp_path, str(models / "small")):
        assert not counts.exists()


def test_a_gpu_takes_one_worker_only() -> None:
    with pytest.raises(NotReady, match="workers = 2 cannot share the device 'cuda:1'; serve with 1 worker, "):
        run(Settings(device="cuda:1", workers=2))


@pytest.mark.parametrize(
    ("device", "share", "told"),
    [
        ("cuda", 0.25, [(0.25, None)]),
        ("cuda:1", 0.5, [(0.5, 1)]),
        ("cuda", 1.0, []),
        ("cuda", 2.0, []),
        ("cuda", 0.0, []),
        ("cpu", 0.25, []),
    ],
)
def test_who_shares_a_gpu_has_its_share_of_the_memory(
    device: str, share: float, told: list[tuple[float, int | None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[float, int | None]] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *given: found.append(given))
    keep_to_share(device, share)
    assert found == told


def test_a_replica_keeps_to_its_share(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[str, float]] = []
    monkeypatch.setattr("service.api.server.keep_to_share", lambda *given: found.append(given))
    monkeypatch.setattr("service.api.computing.compute_alone", lambda: None)
    monkeypatch.setattr("service.api.log.configure", lambda settings: None)
    made(Settings(models=models / "small", device="cpu", replica_gpus=0.5))
    assert found == [("cpu", 0.5)]


UNSHARED = "import service.api.server as s; s.is_shared = lambda device: False"


def test_a_worker_that_reads_its_own_models_is_served_and_renewed_alike(models: Path, tmp_path: Path) -> None:
    """What a GPU needs, on the CPU."""
    folder = shutil.copytree(models / "small", tmp_path / "small")
    with running(tmp_path, str(folder), before=UNSHARED) as found:
        first = found.workers()
        assert len(first) == 1
        assert found.ask("POST", "/predict", SMALL)[1]["version"] == 1
        shutil.copytree(folder / "1", folder / "2")
        found.send(signal.SIGHUP)
        until(lambda: found.ask("POST", "/predict", SMALL)[1]["version"] == 2)
        until(lambda: len(found.workers()) == 1 and found.workers() != first)
        assert found.told().count(" at http://") == 1
        assert found.end() == 0
    (folder / "model.toml").write_text("broken = ")
    with running(tmp_path, str(folder), before=UNSHARED, wait=False) as found:
        assert found.process.wait(60) == 1
        assert "error: nothing in " in found.told()


def forks(models: Path, count: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    script = Path(__file__).with_name("forking.py")
    done = subprocess.run(
        [sys.executable, str(script), str(models), str(count)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{count} forks\n"


def test_torch_works_in_every_fork(models: Path) -> None:
    forks(ROOT / "models" / "digits", 12)


@pytest.mark.slow
def test_torch_works_in_each_of_200_forks(models: Path) -> None:
    forks(models, 100)
    forks(ROOT / "models" / "digits", 100)
