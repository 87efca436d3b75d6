"""Which thread computes on how many."""

import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import torch
from fastapi.testclient import TestClient
from torch import nn

from service import Predictor
from service.api.app import create_app
from service.api.computing import compute_on
from service.settings import Settings

THREADS = """
import os, time, torch
from concurrent.futures import ThreadPoolExecutor
from service.api.computing import compute_alone, compute_on, heed_threads

def begun(prepare):
    prepare()
    time.sleep(0.2)  # a thread that was waited for is still told of for a moment
    before = len(os.listdir("/proc/self/task"))
    torch.randn(900, 900) @ torch.randn(900, 900)
    return len(os.listdir("/proc/self/task")) - before

compute_alone()
with ThreadPoolExecutor(1) as several, ThreadPoolExecutor(1) as later:
    found = [several.submit(begun, lambda: compute_on(3)).result(), later.submit(begun, heed_threads).result()]
    print(*found, begun(lambda: None))
"""


def test_one_thread_computes_on_several_and_no_other_wakes_any() -> None:
    """How many threads a large product of each begins."""
    said = subprocess.run([sys.executable, "-c", THREADS], capture_output=True, text=True, check=True, cwd=Path.cwd())
    assert said.stdout.strip() == "2 0 0"


def test_threads_that_begin_later_compute_on_as_many_as_before() -> None:
    before, found = torch.get_num_threads(), list[int]()
    for work in (lambda: compute_on(before + 1), lambda: found.append(torch.get_num_threads())):
        thread = Thread(target=work)
        thread.start()
        thread.join()
    assert found == [before]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 3])
def test_a_server_computes_on_as_many_threads_as_it_is_told(threads: int, tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)).eval()
    Predictor.capture(network, torch.randn(2, 3)).save(tmp_path / "line")
    app, found = create_app(Settings(models=tmp_path), threads=threads), list[int]()
    scheduler = app.state.serving.scheduler
    start = scheduler._start

    def noting(jobs: object) -> object:
        found.append(torch.get_num_threads())
        return start(jobs)

    scheduler._start = noting
    with TestClient(app) as client:
        rows = [[0.1, 0.2, 0.3]] * 2000
        answer = client.post("/predict", json={"model": "line", "inputs": rows, "passes": 5000})
    assert answer.status_code == 200
    assert found == [threads]
