"""A model trained with masksembles of n masks runs n passes wherever a call names none, and limits count n."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from starlette.testclient import TestClient
from torch import nn
from typer.testing import CliRunner

from service import Predictor
from service.api import create_app
from service.cli import app
from service.dropout import Masksembles1d
from service.errors import BadRequest
from service.repository import Repository
from service.scoring.local import score_locally
from service.settings import Settings

MASKS = 5
ROWS = [[0.1, -0.2, 0.3], [1.0, 2.0, -1.0]]
ONE_OTHER = "passes = 100, but this plan is an ensemble of 5 fixed masks; ask for 5"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    module = nn.Sequential(nn.Linear(3, 12), Masksembles1d(12, MASKS), nn.Dropout(0.0), nn.Linear(12, 1))
    folder = tmp_path_factory.mktemp("models")
    Predictor.capture(module.eval(), torch.randn(2, 3)).save(folder / "ensemble")
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    settings = Settings(models=folder, max_passes=50, max_row_passes=MASKS * 10)
    with TestClient(create_app(settings, Repository(folder)), raise_server_exceptions=False) as found:
        yield found


def test_the_predictor_tells_its_masks_as_its_passes_before_and_after_saving(folder: Path) -> None:
    predictor = Predictor.load(folder / "ensemble")

    assert predictor.passes == MASKS
    assert predictor.predict(torch.tensor(ROWS)).passes == MASKS


def test_another_plan_of_the_same_model_has_the_models_own_passes() -> None:
    module = nn.Sequential(nn.Linear(3, 12), Masksembles1d(12, MASKS), nn.Linear(12, 1))
    predictor = Predictor.capture(module.eval(), torch.randn(2, 3))

    assert predictor.passes_of(variant="bernoulli") == 100
    assert predictor.passes_of(sites={"1.masks": {"n": 7}}) == 7
    predictor.passes = 30
    assert (predictor.passes, predictor.passes_of(variant="bernoulli")) == (MASKS, 30)


def test_a_request_that_names_no_passes_runs_the_masks_and_is_limited_by_them(client: TestClient) -> None:
    """100 passes would be past both limits."""
    for rows in (ROWS, ROWS * 5):
        answer = client.post("/predict", json={"inputs": rows})
        assert answer.status_code == 200, answer.text
        assert answer.json()["passes"] == MASKS
    past = client.post("/predict", json={"inputs": [*ROWS * 5, ROWS[0]]})
    assert past.status_code == 413
    assert "11 rows × 5 passes are past the limit of 50 row-passes" in past.json()["error"]


def test_the_open_protocol_runs_the_masks_too(client: TestClient) -> None:
    tensor = {"name": "input", "datatype": "FP32", "shape": [2, 3], "data": ROWS}
    answer = client.post("/v2/models/ensemble/infer", json={"inputs": [tensor]})

    assert answer.status_code == 200, answer.text
    assert answer.json()["parameters"]["passes"] == MASKS
    assert f'"passes":{MASKS}' in client.get("/v2/models/ensemble").text.replace(" ", "")


def test_another_number_by_name_is_a_bad_request_everywhere(client: TestClient, folder: Path) -> None:
    answer = client.post("/predict", json={"inputs": ROWS, "passes": 100})

    assert (answer.status_code, answer.json()["error"]) == (400, ONE_OTHER)
    with pytest.raises(BadRequest, match=ONE_OTHER):
        Predictor.load(folder / "ensemble").passes_of(100)


def test_scoring_and_the_command_line_run_the_masks(folder: Path, tmp_path: Path) -> None:
    rows, scored = tmp_path / "rows.csv", tmp_path / "scored.csv"
    predictor = Predictor.load(folder / "ensemble")
    with rows.open("w", newline="") as file:
        csv.writer(file).writerows([[f"{predictor.inputs[0].name}_{index}" for index in range(3)], *ROWS])
    told = CliRunner().invoke(app, ["predict", str(folder / "ensemble"), str(rows)])
    assert json.loads(told.stdout)["passes"] == MASKS

    score_locally(predictor, rows, scored)
    with scored.open(newline="") as file:
        found = [[float(value) for value in row.values()] for row in csv.DictReader(file)]
    answer = predictor.predict(torch.tensor(ROWS), passes=MASKS)
    mean = answer.mean.flatten().tolist()
    assert all(pytest.approx(value, rel=1e-4) in row for value, row in zip(mean, found, strict=True))
