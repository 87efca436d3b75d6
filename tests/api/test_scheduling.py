"""Many callers at once: who waits, who is answered, who is told to come back, and what leaving costs."""

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import current_thread
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from processes import server
from served import save_models
from starlette.testclient import TestClient
from torch import nn

from service import Predictor
from service.api import create_app, predict
from service.repository import Repository
from service.settings import Settings

LONG: dict[str, Any] = {"model": "wide", "inputs": np.ones((64, 8)).tolist(), "passes": 4000, "variant": "gaussian"}
SHORT: dict[str, Any] = {"model": "line", "inputs": [[1.0, 2.0, 3.0]], "passes": 20}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_models(tmp_path_factory.mktemp("models"))
    wide = nn.Sequential(
        nn.Linear(8, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 2)
    )
    Predictor.capture(wide.eval(), torch.randn(2, 8)).save(folder / "wide")
    return folder


@pytest.fixture
def client(models: Path) -> Iterator[TestClient]:
    settings = Settings(models=models, max_wait_s=60, max_timeout_s=100)
    with TestClient(create_app(settings, Repository(models)), raise_server_exceptions=False) as found:
        found.post("/predict", json={**LONG, "passes": 8})  # compiled, and its cost known
        found.post("/predict", json=SHORT)
        yield found


def serving(client: TestClient) -> Any:
    return client.app.state.serving  # type: ignore[attr-defined] # a FastAPI app


def until_idle(client: TestClient, seconds: float) -> float:
    began = time.monotonic()
    while serving(client).scheduler.in_flight:
        assert time.monotonic() < began + seconds
        time.sleep(0.005)
    return time.monotonic() - began


def test_a_dry_run_tells_the_cost_and_runs_nothing(client: TestClient) -> None:
    told = client.post("/predict", json={**LONG, "dry_run": True}).json()
    assert told["rows"] == 64
    assert told["passes"] == 4000
    assert told["cost_s"] > 0.05
    assert told["queue_s"] == 0
    assert "mean" not in told


def test_a_wrong_request_is_refused_in_a_dry_run_too(client: TestClient) -> None:
    answer = client.post("/predict", json={**LONG, "inputs": [[1.0]], "dry_run": True})
    assert answer.status_code == 400


def test_past_its_time_a_request_is_told_so_and_costs_no_more(client: TestClient) -> None:
    began = time.monotonic()
    answer = client.post("/predict", json={**LONG, "seed": 1, "timeout_s": 0.2})

    assert answer.status_code == 504
    assert "no answer within 0.2 s; ask for fewer rows or passes" in answer.json()["error"]
    assert time.monotonic() - began < 2
    until_idle(client, 2)


def test_more_time_than_the_server_gives_is_refused(client: TestClient) -> None:
    answer = client.post("/predict", json={**SHORT, "timeout_s": 101})
    assert answer.status_code == 400
    assert "timeout_s = 101 is past the limit of 100 s; allow less" in answer.json()["error"]


def test_a_short_request_and_health_pass_a_long_one(client: TestClient) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(client.post, "/predict", json={**LONG, "seed": 2})
        while not serving(client).scheduler.in_flight:
            time.sleep(0.001)
        took = []
        for request in (lambda: client.post("/predict", json=SHORT), lambda: client.get("/v2/health/live")):
            began = time.monotonic()
            assert request().status_code == 200
            took.append(time.monotonic() - began)
        assert not long.done(), "the long one must be long"
        assert long.result().status_code == 200

    assert max(took) < 1


def test_a_large_answer_to_a_small_question_is_not_written_on_the_loop(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    written = predict.answer
    monkeypatch.setattr(predict, "answer", lambda *given: threads.append(current_thread().name) or written(*given))
    for passes in (20, 4000):
        asked = {**SHORT, "inputs": [[1.0, 2.0, 3.0]] * 5, "passes": passes, "quantities": ["samples"]}
        assert client.post("/predict", json=asked).status_code == 200
    small, large = threads
    assert "worker" in large
    assert "worker" not in small


def test_past_the_bound_of_the_queue_a_caller_is_told_when_to_come_back(models: Path) -> None:
    settings = Settings(models=models, max_wait_s=0.01)
    with TestClient(create_app(settings, Repository(models))) as client, ThreadPoolExecutor(1) as pool:
        client.post("/predict", json={**LONG, "passes": 8})
        long = pool.submit(client.post, "/predict", json={**LONG, "seed": 3})
        while not serving(client).scheduler.in_flight:
            time.sleep(0.001)
        answer = client.post("/predict", json={**LONG, "seed": 4})
        assert long.result().status_code == 200

        counted = client.get("/metrics").text
    assert answer.status_code == 429
    assert 'thinnet_rejected_total{reason="overloaded"} 1.0' in counted
    assert "ask again later" in answer.json()["error"]
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_stopping_server_takes_nothing_new(models: Path) -> None:
    with TestClient(create_app(Settings(models=models), Repository(models))) as client:
        serving(client).scheduler.close()
        answer = client.post("/predict", json=SHORT)

    assert answer.status_code == 503
    assert "the server is stopping" in answer.json()["error"]


def test_neighbours_change_no_answer(client: TestClient) -> None:
    asked = [
        {
            "model": "line",
            "inputs": [[float(index), 1.0, -2.0]] * (1 + index % 3),
            "passes": (10, 40, 40, 300)[index % 4],
            **({"seed": index % 3} if index % 2 else {}),
            **({"scope": "row", "row_offset": index} if index % 5 == 0 else {}),
            **({"quantities": ["quantile_0.9", "standard_error"]} if index % 7 == 0 else {}),
            **({"tolerance": 0.2} if index % 11 == 3 else {}),
            **({"variant": "gaussian"} if index % 6 == 5 else {}),
        }
        for index in range(60)
    ]
    alone = [client.post("/predict", json=each).json() for each in asked]
    with ThreadPoolExecutor(16) as pool:
        among = [answer.json() for answer in pool.map(lambda each: client.post("/predict", json=each), asked)]

    for one, other in zip(alone, among, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            if isinstance(one[name], list) and name != "notes":
                np.testing.assert_allclose(np.asarray(one[name], float), np.asarray(other[name], float), 1e-4, 1e-6)
            else:
                assert one[name] == other[name]


def test_what_waited_and_ran_is_told_and_counted(client: TestClient) -> None:
    answer = client.post("/predict", json={**SHORT, "inputs": [[1.0, 2.0, 3.0]] * 3})
    parts = dict(part.split(";dur=") for part in answer.headers["Server-Timing"].split(", "))
    assert {"queue", "compute", "total"} == set(parts)
    assert float(parts["compute"]) <= float(parts["total"])

    counted = client.get("/metrics").text
    for wanted in ("rows_total 4.0", "passes_total 40.0", "run_requests_count 2.0", "queue_seconds_count 2.0"):
        name, value = wanted.split()
        assert f'thinnet_{name}{{model="line"}} {value}' in counted
    assert 'thinnet_relative_deviation_count{model="line"' in counted


def test_a_caller_who_hangs_up_stops_costing(models: Path) -> None:
    def sent(caller: socket.socket, seed: int) -> None:
        body = orjson.dumps({**LONG, "seed": seed})
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        caller.sendall(head.encode() + body)

    def answered(address: tuple[str, int], seed: int) -> float:
        began = time.monotonic()
        with socket.create_connection(address) as caller:
            sent(caller, seed)
            assert caller.recv(100).startswith(b"HTTP/1.1 200")
        return time.monotonic() - began

    with server(str(models)) as place:
        host, port = place.removeprefix("http://").split(":")
        address = host, int(port)
        answered(address, 0)
        alone_s = answered(address, 1)
        for seed in range(2, 22):
            with socket.create_connection(address) as caller:
                sent(caller, seed)
                time.sleep(0.01)
        after_s = answered(address, 22)

    assert after_s < 5 * alone_s, "twenty callers who left would take twenty times as long"
