"""`thinnet serve --engine ray`: the same app behind Ray's proxies, which turn away and end as thinnet does."""

import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from processes import Running, running, until

from service import Predictor
from service.cluster.serving import run
from service.errors import InvalidSettings, NotReady
from service.settings import Settings

MODELS = Path(__file__).parents[2] / "models"
PATIENT = [[48, 1, 21.6, 87, 183, 103.2, 70, 3, 3.8918, 69]]
ASK = {"model": "diabetes", "passes": 20, "inputs": PATIENT}
LONG = {"model": "digits-rows", "passes": 10_000, "inputs": [[[1] * 8] * 8] * 8}  # takes a second or more
ENDS_S = 60.0


@pytest.fixture(scope="module")
def served(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The embedded models, in the Ray that these tests share; the last test ends it."""
    limits = {"THINNET_MAX_BODY_BYTES": "100000", "THINNET_MAX_WAIT_S": "60"}
    scratch = tmp_path_factory.mktemp("served")
    with running(scratch, str(MODELS), "--engine", "ray", RAY_ADDRESS=ray_address, **limits) as found:
        yield found


def test_a_replica_answers_as_this_process_does(served: Running) -> None:
    status, answer = served.ask("POST", "/predict", ASK)
    expected = Predictor.load(MODELS / "diabetes").predict(torch.tensor(PATIENT), passes=20)
    assert status == 200
    torch.testing.assert_close(torch.tensor(answer["mean"]), expected.mean)
    torch.testing.assert_close(torch.tensor(answer["variance"]), expected.variance)
    assert served.ready()


def test_a_replicas_refusal_and_a_proxys_look_alike(served: Running) -> None:
    status, answer = served.ask("POST", "/predict", {**ASK, "model": "nobody"})
    assert (status, "there is no model 'nobody'" in answer["error"]) == (404, True)
    status, answer = served.ask("POST", "/predict", {**ASK, "inputs": PATIENT * 2000})
    assert (status, "more than the 100000 bytes" in answer["error"]) == (413, True)


def test_an_answer_has_one_request_id_the_callers(served: Running) -> None:
    connection = served.connect()
    connection.request("GET", "/health/live", headers={"X-Request-ID": "mine"})
    assert connection.getresponse().headers.get_all("x-request-id") == ["mine"]
    connection.close()


def test_what_is_being_answered_when_the_end_comes_is_answered(served: Running) -> None:
    found: list[tuple[int, Any]] = []
    caller = Thread(target=lambda: found.append(served.ask("POST", "/predict", LONG)))
    caller.start()
    until(lambda: "thinnet_in_flight 1.0" in metrics_of(served))
    served.send(signal.SIGTERM)
    caller.join(ENDS_S)
    assert [status for status, _ in found] == [200]
    assert served.process.wait(ENDS_S) == 0


def metrics_of(served: Running) -> str:
    connection = served.connect()
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"workers": 2}, "workers = 2 is for engine local; with ray say min_replicas"),
        ({"min_replicas": 3, "max_replicas": 2}, "max_replicas = 2 is below min_replicas = 3"),
        ({"device": "cuda"}, "say replica_gpus = 1"),
        ({"host": "0.0.0.0"}, "nobody is asked for a key"),
    ],
)
def test_settings_that_do_not_go_with_ray_are_refused_before_it_starts(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidSettings, match=message):
        run(Settings(engine="ray", **given))


def test_a_ray_that_does_not_answer_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(NotReady, match=r"the Ray at RAY_ADDRESS=127\.0\.0\.1:1 does not answer"):
        run(Settings(engine="ray"))


def test_without_ray_the_cure_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(NotReady, match=r"pip install 'ray\[serve,data\]'"):
        run(Settings(engine="ray", port=0))
