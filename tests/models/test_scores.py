import csv
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from service import Predictor
from service.folder import Card

MODELS = Path(__file__).parents[2] / "models"
SITES = {
    "digits": {
        "input": (None, None),
        "relu1": (None, None),
        "relu2": (None, None),
        "pool": (None, None),
        "drop_channels": ("spatial", 0.3),
        "drop_units": ("bernoulli", 0.5),
        "conv1.weight": (None, None),
        "conv2.weight": (None, None),
        "hidden.weight": (None, None),
        "logits.weight": (None, None),
    },
    "digits-dropconnect": {
        "input": (None, None),
        "relu1": (None, None),
        "relu2": (None, None),
        "hidden1.weight": (None, None),
        "hidden2.weight": ("dropconnect-sampled", 0.5),
        "logits.weight": ("dropconnect-sampled", 0.5),
    },
    "digits-rows": {
        "input": (None, None),
        "logits.weight": (None, None),
        "rows.cell_0": ("variational-rnn", 0.2),
    },
    "diabetes": {
        "input": (None, None),
        "drop": ("bernoulli", 0.2),
        "hidden.weight": (None, None),
        "mean_and_log_variance.weight": (None, None),
    },
}
NAMES = tuple(SITES)
DIGITS = ("digits", "digits-dropconnect", "digits-rows")
Scripts = Callable[[str], ModuleType]
Cards = Callable[[str], Card]
Predictors = Callable[[str], Predictor]


def gaussian_log_likelihood(y: Tensor, mean: Tensor, variance: Tensor) -> float:
    each: list[float] = [
        -0.5 * math.log(2 * math.pi * v) - (target - m) ** 2 / (2 * v)
        for target, m, v in zip(y.flatten().tolist(), mean.flatten().tolist(), variance.flatten().tolist(), strict=True)
    ]
    return sum(each) / len(each)


@pytest.mark.parametrize(("name", "least"), [("digits", 0.98), ("digits-dropconnect", 0.97), ("digits-rows", 0.97)])
def test_unseen_digits_are_read_as_well_as_the_datasheet_says(
    name: str, least: float, script: Scripts, card: Cards, predictor: Predictors
) -> None:
    images, classes = script(name).held_out()
    answer = predictor(name).predict(images).outputs["digit"]
    accuracy = (answer["mean"].argmax(-1) == classes).double().mean().item()
    log_likelihood = answer["mean"].double()[torch.arange(len(classes)), classes].log().mean().item()
    assert accuracy >= least
    assert accuracy == pytest.approx(card(name).score["accuracy"], abs=1.5 / len(classes))
    assert log_likelihood == pytest.approx(card(name).score["log_likelihood"], abs=1e-3)


def test_unseen_patients_are_predicted_as_well_as_the_datasheet_says(
    script: Scripts, card: Cards, predictor: Predictors
) -> None:
    x, y = script("diabetes").held_out()
    answer = predictor("diabetes").predict(x).outputs["progression"]
    score = card("diabetes").score
    rmse = (answer["mean"] - y).double().square().mean().sqrt().item()
    own = gaussian_log_likelihood(y, answer["mean"], answer["total_variance"])
    assert rmse == pytest.approx(score["rmse"], abs=0.01)
    assert own == pytest.approx(score["log_likelihood"], abs=1e-3)
    assert own > score["log_likelihood_constant_variance"]


def test_over_five_folds_the_own_variance_of_each_patient_beats_a_constant_one(script: Scripts, card: Cards) -> None:
    train, score = script("diabetes"), card("diabetes").score
    (x, y), figures = train.load(), []
    for fold, (inside, outside) in enumerate(train.folds()):
        predictor, said = train.run_fold(fold)
        answer, own = predictor.predict(x[outside])["mean"], predictor.predict(x[inside])["mean"]
        total = predictor.predict(x[outside])["total_variance"]
        constant = (own - y[inside]).square().mean().expand_as(total)
        rmse = (answer - y[outside]).double().square().mean().sqrt().item()
        likelihoods = [gaussian_log_likelihood(y[outside], answer, variance) for variance in (total, constant)]
        assert said == pytest.approx((rmse, *likelihoods), rel=1e-4)
        figures.append(said)
    rmse, own, constant = torch.tensor(figures).double().mean(0).tolist()
    assert rmse <= 56
    assert own > constant
    assert rmse == pytest.approx(score["rmse_folds"], abs=0.5)
    assert own == pytest.approx(score["log_likelihood_folds"], abs=0.02)
    assert constant == pytest.approx(score["log_likelihood_constant_variance_folds"], abs=0.02)


def test_no_row_is_trained_on_and_held_out(script: Scripts, card: Cards) -> None:
    for name in DIGITS:
        images, unseen, *_ = script(name).split()
        assert (len(images), len(unseen)) == (1437, 360)
        assert card(name).inputs[0].mean == pytest.approx([images.mean().item()])
    (x, _), folds = script("diabetes").load(), script("diabetes").folds()
    for inside, outside in folds:
        assert sorted([*inside.tolist(), *outside.tolist()]) == list(range(442))
    assert sorted(torch.cat([outside for _, outside in folds]).tolist()) == list(range(442))
    assert card("diabetes").inputs[0].mean == pytest.approx(x[folds[0][0]].mean(0).tolist())


@pytest.mark.parametrize("name", NAMES)
def test_a_model_has_the_sites_that_it_was_trained_with(name: str, predictor: Predictors) -> None:
    loaded = predictor(name)
    assert {site.name: (site.variant, site.p) for site in loaded.sites} == SITES[name]
    assert loaded.lost == ()
    assert not loaded.couples_rows
    assert loaded.mode() == "folded"


@pytest.mark.parametrize("name", NAMES)
def test_a_program_is_small_and_tells_nothing_of_the_machine_that_made_it(name: str) -> None:
    content = (MODELS / name / "1" / "program.pt2").read_bytes()
    assert len(content) < 1_000_000
    assert b'"graph_module"' in content  # it is stored as it is, so that a search finds what is in it
    for trace in (b"stack_trace", b"site-packages", b"train.py", str(MODELS.parent).encode()):
        assert trace not in content


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_unseen_rows_that_are_answered(name: str, script: Scripts, predictor: Predictors) -> None:
    example = json.loads((MODELS / name / "example.json").read_text())
    unseen, _ = script(name).held_out()
    rows = torch.tensor(example["inputs"], dtype=torch.float32)
    assert example["model"] == name
    for row in rows:
        assert (unseen - row).flatten(1).abs().amax(1).min() < 1e-4
    (answer,) = predictor(name).predict(example["inputs"]).outputs.values()
    assert answer["variance"].min() > 0


def test_the_example_table_is_unseen_patients_in_their_own_units(script: Scripts, card: Cards) -> None:
    with (MODELS / "diabetes" / "example.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert tuple(header) == card("diabetes").inputs[0].features
    unseen, _ = script("diabetes").held_out()
    found = torch.tensor([[float(cell) for cell in row] for row in rows])
    torch.testing.assert_close(found, unseen[:10], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training_again_gives_the_same_model(name: str, card: Cards, tmp_path: Path) -> None:
    folder = tmp_path / name
    subprocess.run([sys.executable, MODELS / name / "train.py", folder], check=True, cwd=MODELS.parent)
    again, committed = Predictor.load(folder), Predictor.load(MODELS / name)
    assert again.sites == committed.sites
    example = json.loads((MODELS / name / "example.json").read_text())["inputs"]
    written = json.loads((folder / "1" / "manifest.json").read_text())["files"]["program.pt2"]["sha256"]
    if written != card(name).sha256:  # another processor rounds otherwise, and training carries that far
        figures = again.predict(example)["mean"], committed.predict(example)["mean"]
        torch.testing.assert_close(*figures, rtol=0.2, atol=0.2)
