"""A tolerance ends each row's passes once its variance is known well enough, and says nothing else than it would."""

import functools
import math
import warnings
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.dropout import Masksembles1d
from service.errors import BadRequest, InvalidQuantity
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.signature import Activation, Output, Task
from service.tolerance import FLOOR, gather, looks, settled

SOFTMAX = Output(task=Task.CLASSIFICATION, activation=Activation.SOFTMAX)
PLANS: list[dict[str, Any]] = [
    {},
    {"estimator": "integrated"},
    {"scope": "row", "row_offset": 3},
    {"variant": "dropconnect", "p": 0.2},
    {"memory_bytes": 60_000},
]


def capture(module: nn.Module, x: Tensor, *outputs: Output) -> Predictor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        return Predictor.capture(module.eval(), x, outputs=outputs or None)


@functools.cache
def deep(*outputs: Output) -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.4),
                          nn.Linear(8, 3)),
            torch.randn(2, 4), *outputs,
        )  # fmt: skip


ROWS = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


def quantities(prediction: Any) -> dict[str, Tensor]:
    return dict(prediction.outputs["output"])


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_row_is_answered_as_all_its_passes_would_be(plan: dict[str, Any]) -> None:
    ended = quantities(deep().predict(ROWS, tolerance=0.12, seed=4, **plan))
    taken = ended.pop("passes_used")

    assert len(set(taken.tolist())) > 1, "every row ended at one look: nothing is put back in order"
    for passes in set(taken.tolist()):
        rows = taken == passes
        whole = quantities(deep().predict(ROWS, passes=passes, seed=4, quantities=["variance_error"], **plan))
        for name, values in ended.items():
            torch.testing.assert_close(values[rows], whole[name][rows], rtol=1e-4, atol=1e-6, msg=name)


def test_every_quantity_of_a_classifier_is_that_of_the_rows_own_passes() -> None:
    asked = ["standard_error", "deterministic", "variance_error"]
    ended = quantities(deep(SOFTMAX).predict(ROWS, tolerance=0.12, quantities=asked))
    taken = ended.pop("passes_used")

    assert len(set(taken.tolist())) > 1
    for passes in set(taken.tolist()):
        rows = taken == passes
        whole = quantities(deep(SOFTMAX).predict(ROWS, passes=passes, quantities=asked))
        assert set(whole) == set(ended)
        for name, values in ended.items():
            torch.testing.assert_close(values[rows].float(), whole[name][rows].float(), rtol=1e-4, atol=1e-6, msg=name)


def test_rows_end_at_the_first_look_that_is_below_the_tolerance() -> None:
    ended = quantities(deep().predict(ROWS, tolerance=0.12))
    errors = {
        passes: quantities(deep().predict(ROWS, passes=passes, quantities=["variance_error"]))["variance_error"]
        for passes in looks(4096)
    }

    for row, passes in enumerate(ended["passes_used"].tolist()):
        first = next(look for look in looks(4096) if (errors[look][row] <= 0.12).all())
        assert passes == first
        torch.testing.assert_close(ended["variance_error"][row], errors[passes][row], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("estimator", ["sampled", "integrated"])
def test_the_error_is_the_spread_of_the_variance_from_seed_to_seed(estimator: str) -> None:
    asked: dict[str, Any] = {"passes": 400, "estimator": estimator, "quantities": ["variance_error"]}
    runs = [quantities(deep().predict(ROWS[:3], seed=seed, **asked)) for seed in range(300)]
    variances = torch.stack([run["variance"] for run in runs]).double()
    claimed = torch.stack([run["variance_error"] for run in runs]).double().square().mean(0).sqrt()
    found = variances.std(0) / variances.mean(0)

    torch.testing.assert_close(claimed, found, rtol=5 / math.sqrt(2 * 300), atol=0.0)


def test_the_most_passes_are_ten_thousand_or_those_asked_for() -> None:
    tight: dict[str, Any] = {"tolerance": 0.001, "quantities": ["variance_error"]}
    most, fewer = deep().predict(ROWS[:2], **tight), deep().predict(ROWS[:2], passes=100, **tight)

    assert (most.passes, fewer.passes) == (10_000, 100)
    assert quantities(fewer)["passes_used"].tolist() == [100, 100]
    assert "rows 0, 1 ran the most passes" in "; ".join(fewer.notes)
    assert deep().predict(ROWS[:2], tolerance=0.3).notes == ()


@pytest.fixture
def portions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Return what will hold the rows that ran, from which pass on and how many, run by run."""
    seen: list[tuple[int, int, int]] = []
    run = Compiled.run

    def noting(self: Compiled, values: Any, shapes: Any, draw: Draw) -> list[Tensor]:
        seen.append((shapes[0][0], draw.first_pass, draw.passes))
        return run(self, values, shapes, draw)

    monkeypatch.setattr(Compiled, "run", noting)
    return seen


def test_rows_that_ended_leave_the_batch(portions: list[tuple[int, int, int]]) -> None:
    taken = quantities(deep().predict(ROWS, tolerance=0.12))["passes_used"]

    assert sum(rows * passes for rows, _, passes in portions) == int(taken.sum())
    assert len({rows for rows, _, _ in portions}) > 2


class Folded(nn.Module):
    """A trunk whose rows have several entries of an axis, so that it runs again for the rows that are left."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = x.reshape(-1, 2).relu()
        return nn.functional.softplus(4 * self.head(self.drop(h))).reshape(-1, 4)


@pytest.mark.parametrize(("make", "once"), [(None, True), (Folded, False)])
def test_the_trunk_runs_once_where_rows_can_be_told_apart(
    make: Callable[[], nn.Module] | None, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        predictor = deep() if make is None else capture(make(), ROWS[:2])
    rows = ROWS if make is None else ROWS.abs()
    seen, trunk = [], Compiled.trunk

    def noting(self: Compiled, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
        seen.append(len(inputs[0]))
        return trunk(self, inputs)

    predictor.predict(rows, passes=2)
    monkeypatch.setattr(Compiled, "trunk", noting)
    ended = quantities(predictor.predict(rows, tolerance=0.12, passes=4096))
    taken = ended["passes_used"]

    assert len(set(taken.tolist())) > 1
    assert (seen == [len(rows)]) == once
    for passes in set(taken.tolist()):
        whole = quantities(predictor.predict(rows, passes=passes))
        torch.testing.assert_close(ended["variance"][taken == passes], whole["variance"][taken == passes])


class Centred(nn.Module):
    """A network whose rows see one another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.head = nn.Linear(4, 6), nn.Dropout(0.3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.inner(x).relu())
        y: Tensor = self.head(h - h.mean(0))
        return y


def test_rows_that_see_one_another_end_together(portions: list[tuple[int, int, int]]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        coupled = capture(Centred(), ROWS[:2])
    assert coupled.couples_rows
    portions.clear()
    ended = coupled.predict(ROWS, tolerance=0.1)

    assert len(set(quantities(ended)["passes_used"].tolist())) == 1
    assert {rows for rows, _, _ in portions} == {len(ROWS)}
    assert ended.passes < 10_000
    torch.testing.assert_close(ended.variance, coupled.predict(ROWS, passes=ended.passes).variance)


class Dead(nn.Module):
    """An output element that no noise moves, for rows whose first feature is not positive."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x[:, :1].relu().expand(-1, 16)).mean(1)


def test_a_variance_of_zero_never_ends_a_row() -> None:
    ended = capture(Dead(), torch.ones(2, 1)).predict(torch.tensor([[1.0], [-1.0]]), tolerance=0.3, passes=200)

    assert quantities(ended)["passes_used"].tolist() == [64, 200]
    assert quantities(ended)["variance_error"].isnan().tolist() == [False, True]
    assert "rows 1 ran the most passes, and a variance there is 0" in "; ".join(ended.notes)


def test_a_variance_under_the_floor_is_rounding_and_settles_nothing() -> None:
    mean, error = torch.full((3, 1), 2.0), torch.full((3, 1), 0.01)
    variance = torch.tensor([[0.0], [3.9 * FLOOR], [4.1 * FLOOR]])

    assert settled(mean, variance, error, 0.05).tolist() == [False, False, True]
    assert not settled(mean, variance, error * 10, 0.05).any()


class Half(nn.Module):
    """Two outputs, of which noise reaches one."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.left, self.right = nn.Dropout(0.3), nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(self.drop(x)), self.right(x)


@pytest.mark.parametrize("estimator", ["sampled", "integrated"])
def test_an_output_that_no_noise_reaches_keeps_no_row_running(estimator: str) -> None:
    ended = capture(Half(), ROWS[:2]).predict(ROWS, tolerance=0.3, estimator=estimator)

    assert ended.passes <= 256
    assert not any("ran the most passes" in note for note in ended.notes)


@pytest.mark.parametrize("tolerance", [0, 1, -0.1, 2, math.nan, math.inf, True, "0.1"])
def test_other_tolerances_are_refused(tolerance: Any) -> None:
    with pytest.raises(BadRequest, match=r"tolerance = .* is not a number between 0 and 1, such as 0\.05"):
        deep().predict(ROWS, tolerance=tolerance)


@pytest.mark.parametrize("quantity", ["samples", "quantile_0.9"])
def test_what_needs_equally_many_passes_is_refused(quantity: str) -> None:
    with pytest.raises(InvalidQuantity, match="samples and quantiles are of equally many passes for all rows"):
        deep().predict(ROWS, tolerance=0.1, quantities=[quantity])


def test_an_ensemble_of_fixed_masks_is_refused() -> None:
    ensemble = capture(nn.Sequential(nn.Linear(4, 16), Masksembles1d(16, 4), nn.Linear(16, 1)), ROWS[:2])
    with pytest.raises(BadRequest, match="an ensemble of 4 fixed masks, which all run; leave the tolerance out"):
        ensemble.predict(ROWS, tolerance=0.1)


def test_looks_double_up_to_the_most() -> None:
    assert list(looks(10_000)) == [64, 128, 256, 512, 1024, 2048, 4096, 8192, 10_000]
    assert list(looks(64)) == [64]
    assert list(looks(65)) == [64, 65]
    assert list(looks(2)) == [2]


def test_rows_of_several_looks_are_put_back_in_order() -> None:
    parts = [
        (torch.tensor([3, 0]), [{"a": torch.tensor([3, 0])}]),
        (torch.tensor([1, 2]), [{"a": torch.tensor([1, 2])}]),
    ]

    assert gather(parts)[0]["a"].tolist() == [0, 1, 2, 3]


UNITS = 8


def weights(steepness: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, UNITS, generator=generator) * steepness / math.sqrt(UNITS)
    weight[0] = weight[0].abs() * (2 if steepness > 1 else 1)
    return weight


def network(p: float, steepness: float, *outputs: Output) -> Predictor:
    layer = nn.Linear(UNITS, 3, bias=False)
    layer.weight.data = weights(steepness)
    return capture(nn.Sequential(nn.Dropout(p), layer), torch.ones(2, UNITS), *outputs)


def exact(p: float, steepness: float, act: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the variance over all 2⁸ masks."""
    masks = torch.tensor(list(product((0.0, 1.0), repeat=UNITS)), dtype=torch.float64)
    chance = (masks * (1 - p) + (1 - masks) * p).prod(1, keepdim=True)
    values = act(masks / (1 - p) @ weights(steepness).double().T)
    return (chance * values.square()).sum(0) - (chance * values).sum(0).square()


SLICE = 2000
MORE_SEEDS = {("saturated softmax", 0.05): 24_000, ("saturated softmax", 0.1): 6_000}  # rare jumps vary more
STUDY = {
    "line": (1.0, (), lambda y: y),
    "softmax": (1.0, (SOFTMAX,), lambda y: y.softmax(-1)),
    "saturated softmax": (6.0, (SOFTMAX,), lambda y: y.softmax(-1)),
}


def bias(name: str, p: float, tolerance: float, seeds: int) -> tuple[Tensor, Tensor]:
    """Return the mean variance's relative bias over seeds and its standard error; rows of scope row are the seeds."""
    steepness, outputs, act = STUDY[name]
    asked = network(p, steepness, *outputs)
    parts = []
    for first in range(0, seeds, SLICE):
        some = torch.ones(min(SLICE, seeds - first), UNITS)
        parts.append(quantities(asked.predict(some, tolerance=tolerance, scope="row", row_offset=first))["variance"])
    truth, variances = exact(p, steepness, act), torch.cat(parts).double()
    return variances.mean(0) / truth - 1, variances.std(0) / math.sqrt(seeds) / truth


@pytest.mark.parametrize("name", STUDY)
def test_stopping_does_not_bias_the_variance(name: str) -> None:
    off, error = bias(name, 0.5, 0.1, 200)

    assert (error < 0.01).all()
    assert (off.abs() < 0.02).all(), off


@pytest.mark.slow
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
@pytest.mark.parametrize("name", STUDY)
def test_over_two_thousand_seeds_stopping_does_not_bias_the_variance(name: str, p: float) -> None:
    off, error = bias(name, p, 0.05, MORE_SEEDS.get((name, p), 2000))

    print(f"{name}, p = {p}: bias {[f'{each:.2%}' for each in off.tolist()]}, standard error {error.max():.2%}")
    assert (error < 0.01).all()
    assert (off.abs() < 0.02).all(), off
