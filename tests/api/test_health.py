"""/health and its twins: they say what is so, at once, whatever runs."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient
from torch import nn

from service import Predictor
from service.api import create_app
from service.graph.compiled import Compiled
from service.repository import Repository
from service.settings import Settings

MOST_S = 0.05
IDLE = {"in_flight": 0, "queued_cost_s": 0.0, "stalled_s": 0.0, "closed": False}


@pytest.fixture(scope="module")
def repository(folder: Path) -> Repository:
    return Repository(folder)


@pytest.fixture
def app(folder: Path, repository: Repository) -> Any:
    return create_app(Settings(models=folder, stall_s=5), repository)


@pytest.fixture
def own(app: Any) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found


def both(client: TestClient, name: str) -> tuple[int, Any]:
    """Return what a probe and its twin answer, which is the same."""
    first, twin = client.get(f"/health/{name}"), client.get(f"/v2/health/{name}")
    assert (first.status_code, first.json()) == (twin.status_code, twin.json())
    return first.status_code, first.json()


def test_a_server_that_serves_is_live_and_ready(own: TestClient) -> None:
    assert both(own, "live") == (200, {"live": True})
    assert both(own, "ready") == (200, {"ready": True})


@pytest.mark.parametrize(
    ("told", "reason"),
    [({"closed": True}, "draining"), ({"stalled_s": 6.0}, "no progress for 6 s")],
    ids=["draining", "stuck"],
)
def test_a_server_that_takes_no_work_or_hangs_is_live_and_not_ready(
    app: Any, own: TestClient, told: dict[str, Any], reason: str
) -> None:
    app.state.serving.scheduler = SimpleNamespace(**IDLE | told)
    assert both(own, "live")[0] == 200
    status, answer = both(own, "ready")
    assert status == 503
    assert answer["ready"] is False
    assert reason in answer["error"]


def test_work_that_goes_on_is_ready(app: Any, own: TestClient) -> None:
    app.state.serving.scheduler = SimpleNamespace(**IDLE | {"in_flight": 90, "queued_cost_s": 60.0, "stalled_s": 4.0})
    assert both(own, "ready")[0] == 200


def test_a_dead_worker_is_not_ready_until_it_is_replaced(app: Any, own: TestClient) -> None:
    dead = ["worker 2: it has ended and is being replaced"]
    app.state.serving.workers_dead = lambda: dead
    assert "worker 2: it has ended" in both(own, "ready")[1]["error"]
    dead.clear()
    assert both(own, "ready")[0] == 200


def test_a_model_at_fault_is_named(app: Any, own: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(app.state.serving.repository.faults, "line", "its checksum is wrong")
    status, answer = both(own, "ready")
    assert (status, answer["error"]) == (503, "line: its checksum is wrong")


def test_a_default_request_after_ready_compiles_and_measures_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = Repository(folder)
    done: list[str] = []

    def noted(name: str) -> Callable[..., Any]:
        kept = getattr(Compiled, name)

        def call(*arguments: Any, **named: Any) -> Any:
            done.append(name)
            return kept(*arguments, **named)

        return call

    for name in ("__init__", "_choose", "_measure", "_thinned_by_cost"):
        monkeypatch.setattr(Compiled, name, noted(name))
    with TestClient(create_app(Settings(models=folder), fresh)) as client:
        assert both(client, "ready")[0] == 200
        assert client.post("/predict", json={"model": "line", "inputs": [[1, 2, 3]]}).status_code == 200
        assert not done
        own = client.post("/predict", json={"model": "line", "inputs": [[1, 2, 3]], "variant": "gaussian"})
    assert own.status_code == 200
    assert {"__init__", "_choose", "_measure"} <= set(done)


class Broken(nn.Module):
    """It cannot run in less than two rows, which a single caller would find out."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x)


def test_a_model_whose_passes_fail_is_not_ready_and_the_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("good", "bad"):
        Predictor.capture(Broken().eval(), torch.randn(2, 2)).save(tmp_path / name)
    run = Predictor.warm_up
    broken = iter([RuntimeError("shapes cannot be multiplied\nand more")])

    def fail_once(predictor: Predictor) -> None:
        for error in broken:
            raise error
        run(predictor)

    monkeypatch.setattr(Predictor, "warm_up", fail_once)
    with TestClient(create_app(Settings(models=tmp_path))) as client:
        status, answer = both(client, "ready")
        assert status == 503
        assert answer["error"] == "bad: its first passes fail: shapes cannot be multiplied"
        assert client.post("/predict", json={"model": "good", "inputs": [[1, 2]]}).status_code == 200
        assert client.post("/predict", json={"model": "bad", "inputs": [[1, 2]]}).status_code == 503


def test_probes_and_metrics_answer_at_once_while_runs_queue(own: TestClient) -> None:
    body = {"model": "line", "inputs": [[0.1, 0.2, 0.3]] * 100, "passes": 2_000, "scope": "row"}
    callers = [threading.Thread(target=own.post, args=("/predict",), kwargs={"json": body}) for _ in range(4)]
    for caller in callers:
        caller.start()
    taken = []
    while any(caller.is_alive() for caller in callers):
        for path in ("/health/live", "/health/ready", "/metrics"):
            start = time.perf_counter()
            assert own.get(path).status_code == 200
            taken.append(time.perf_counter() - start)
    assert len(taken) >= 9
    assert sorted(taken)[len(taken) * 9 // 10] < MOST_S, sorted(taken)


def test_a_probe_waits_for_no_thread(app: Any, own: TestClient) -> None:
    """All threads that routes share are taken, as they are where many callers wait for a model to load."""
    release = threading.Event()

    @app.get("/occupied")
    def occupied() -> None:
        release.wait(10)

    callers = [threading.Thread(target=own.get, args=("/occupied",)) for _ in range(60)]
    try:
        for caller in callers:
            caller.start()
        time.sleep(0.2)
        start = time.perf_counter()
        assert both(own, "ready")[0] == both(own, "live")[0] == 200
        assert own.get("/metrics").status_code == 200
        assert time.perf_counter() - start < 2
    finally:
        release.set()
        for caller in callers:
            caller.join()
