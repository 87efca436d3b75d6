"""What is served over HTTP is the truth of a careful hand loop, on the networks where other tools answer 0 or wrong."""

from pathlib import Path

import pytest
import torch
from specimen import Specimen, build, naive
from starlette.testclient import TestClient
from zoo import ZOO

from service import Predictor
from service.api import create_app
from service.repository import Repository
from service.settings import Settings

HARD = (
    "transformer encoder",
    "lstm between layers",
    "functional dropout",
    "row-major attention",
    "dropout, then batch norm",
)
PASSES = 4000


@pytest.mark.parametrize("specimen", [each for each in ZOO if each.name in HARD], ids=repr)
def test_served_mean_and_variance_are_a_hand_loops(specimen: Specimen, tmp_path: Path) -> None:
    """In training mode, BatchNorm in eval: within 5 standard errors of mean and variance, and no variance is 0."""
    inputs = specimen.inputs(2)
    Predictor.capture(build(specimen), inputs).save(tmp_path / "network")
    client = TestClient(create_app(Settings(models=tmp_path), Repository(tmp_path)))
    body = {"inputs": inputs[0].tolist(), "passes": PASSES, "scope": "row", "quantities": ["samples"]}
    answer = client.post("/predict", json=body).json()
    with torch.no_grad():
        loop = naive(build(specimen))
        theirs = torch.stack([loop(*inputs) for _ in range(PASSES)]).double()
    mine = torch.tensor(answer["samples"], dtype=torch.float64).movedim(1, 0)

    for samples in (mine, theirs):
        assert bool((samples.var(0) > 0).all())
    assert torch.allclose(torch.tensor(answer["mean"]).double(), mine.mean(0), rtol=1e-4, atol=1e-6)
    assert torch.allclose(torch.tensor(answer["variance"]).double(), mine.var(0), rtol=1e-4, atol=1e-9)
    for k in (1, 2):
        first, second = (((x - x.mean(0)) ** k if k > 1 else x) for x in (mine, theirs))
        error = ((first.var(0) + second.var(0)) / PASSES).sqrt()
        assert bool(((first.mean(0) - second.mean(0)).abs() <= 5 * error).all())


def test_every_network_is_tried() -> None:
    assert {each.name for each in ZOO} >= set(HARD)
