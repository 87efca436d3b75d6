"""A device without memory for what runs at once: less runs, the answer is the same, and nobody tries as much again."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.ask import Asked
from service.errors import OutOfMemory
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.replayed import round_rows
from service.prediction import Prediction
from service.quantities import Accumulator
from service.question import finished, together

FULL = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 1.00 GiB"


class Small:
    """A device that has room for some rows × passes; it notes what ran and what did not."""

    def __init__(self, row_passes: int) -> None:
        self.row_passes = row_passes
        self.ran: list[tuple[int, int]] = []
        self.refused: list[tuple[int, int]] = []

    @contextmanager
    def at_hand(self) -> Iterator["Small"]:
        run, trunk = Compiled.run, Compiled.trunk

        def run_there(plan: Compiled, values: Any, shapes: Any, draw: Draw) -> list[Tensor]:
            self.hold(shapes[0][0], draw.passes)
            return run(plan, values, shapes, draw)

        def trunk_there(plan: Compiled, inputs: tuple[Tensor, ...]) -> Any:
            self.hold(len(inputs[0]), 1)
            return trunk(plan, inputs)

        with patch.object(Compiled, "run", run_there), patch.object(Compiled, "trunk", trunk_there):
            yield self

    def hold(self, rows: int, passes: int) -> None:
        fits = rows * passes <= self.row_passes
        (self.ran if fits else self.refused).append((rows, passes))
        if not fits:
            raise torch.OutOfMemoryError(FULL)


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x - x.mean(0))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x)
        return y, y.square()


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2)).eval()


def rows(count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(count))


def close(found: Prediction, expected: Prediction) -> None:
    for output, quantities in expected.outputs.items():
        for name, values in quantities.items():
            torch.testing.assert_close(found.outputs[output][name], values, rtol=1e-5, atol=1e-6, msg=name)


ASKED = [
    {"passes": 64, "quantities": ["samples", "standard_error", "deterministic"]},
    {"passes": 64, "scope": "row"},
    {"passes": 64, "estimator": "integrated"},
    {"passes": 300, "tolerance": 0.2},
    {"passes": 64, "variant": "dropconnect", "p": 0.2},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
@pytest.mark.parametrize("room", [10, 3])
@pytest.mark.parametrize("is_filled", [False, True], ids=["seven rows", "seven rows and one that makes them round"])
def test_what_runs_at_once_is_halved_until_it_fits_and_the_answer_is_the_same(
    asked: Any, room: int, is_filled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = rows(7)
    expected = Predictor.capture(network(), x).predict(x, **asked)
    if is_filled:
        monkeypatch.setattr(Compiled, "rows_for", lambda plan, count: round_rows(count))
    predictor = Predictor.capture(network(), x)
    with Small(room).at_hand() as device:
        close(predictor.predict(x, **asked), expected)
        assert device.refused
        assert max(rows * passes for rows, passes in device.ran) > room // 4

        device.refused.clear()
        close(predictor.predict(x, **asked), expected)
        assert not device.refused


def test_the_largest_that_fits_is_within_a_factor_of_two() -> None:
    x = rows(1)
    predictor = Predictor.capture(network(), x)
    with Small(100).at_hand() as device:
        predictor.predict(x, passes=1000)

    assert [passes for _, passes in device.refused] == [1000, 400, 200]  # round numbers up to half of what was refused
    assert max(passes for _, passes in device.ran) == 100


def test_what_did_not_fit_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rows(7)
    predictor = Predictor.capture(network(), x)
    with Small(7).at_hand():
        predictor.predict(x, passes=64)
    with Small(1000).at_hand() as device:
        predictor.predict(x, passes=64)
        assert max(device.ran) == (7, 1)
        later = time.monotonic() + 100
        monkeypatch.setattr("service.graph.footprint.time.monotonic", lambda: later)
        predictor.predict(x, passes=64)
        assert max(device.ran) == (7, 64)


def test_where_nothing_fitted_nothing_is_remembered() -> None:
    x = rows(7)
    predictor = Predictor.capture(network(), x)
    predictor.predict(x)
    with Small(0).at_hand(), pytest.raises(OutOfMemory, match="no memory"):
        predictor.predict(x, passes=64)
    with Small(1000).at_hand() as device:
        predictor.predict(x, passes=64)
    assert max(device.ran) == (7, 64)


def test_asks_that_ran_together_are_answered_alone_where_all_do_not_fit() -> None:
    asked = [{"passes": 40}, {"passes": 9}, {"passes": 300, "tolerance": 0.3}, {"passes": 40}]
    given = [rows(count) for count in (3, 2, 5, 1)]
    predictor = Predictor.capture(network(), given[0])
    expected = [predictor.predict(x, **own) for x, own in zip(given, asked, strict=True)]
    questions = [predictor.question(x, Asked(**own)) for x, own in zip(given, asked, strict=True)]
    assert questions[1].fits(questions[:1])
    with Small(3).at_hand() as device:
        answers = [each for found in together(questions) for each in found.items()]

    assert device.refused[0] == (11, 1)
    assert sorted(place for place, _ in answers) == [0, 1, 2, 3]
    for place, answer in answers:
        close(answer, expected[place])


def test_who_has_an_answer_when_memory_ends_is_not_answered_again() -> None:
    given, asked = [rows(3), rows(2)], [{"passes": 9}, {"passes": 40}]
    predictor = Predictor.capture(network(), given[0])
    expected = [predictor.predict(x, **own) for x, own in zip(given, asked, strict=True)]
    steps = together([predictor.question(x, Asked(**own)) for x, own in zip(given, asked, strict=True)])
    first = next(found for found in steps if found)
    with Small(1).at_hand() as device:
        rest = finished(steps)

    assert device.refused
    assert (list(first), list(rest)) == ([0], [1])
    close(first[0], expected[0])
    close(rest[1], expected[1])


def test_statistics_that_find_no_memory_have_taken_nothing() -> None:
    x = rows(3)
    predictor = Predictor.capture(TwoOutputs().eval(), x)
    expected = predictor.predict(x, passes=30, quantities=["samples"])
    add, calls = Accumulator.add, iter(range(100))

    def add_there(statistics: Accumulator, raw: Tensor) -> None:
        add(statistics, raw)
        if next(calls) == 1:  # both outputs' passes are taken
            raise torch.OutOfMemoryError(FULL)

    with patch.object(Accumulator, "add", add_there):
        close(predictor.predict(x, passes=30, quantities=["samples"]), expected)


@pytest.mark.parametrize(
    ("made", "count", "room", "said"),
    [
        (network(), 3, 0, r"the device has no memory for a pass of 1 rows, \d{3,} bytes besides the weights; ask for"),
        (Coupled(), 6, 4, r"no memory for a pass of 6 rows, \d{3,} bytes besides the weights; ask for fewer rows, "),
    ],
    ids=["one row", "coupled rows"],
)
def test_where_nothing_fits_it_says_how_much_would_be_needed(made: nn.Module, count: int, room: int, said: str) -> None:
    x = rows(count)
    predictor = Predictor.capture(made.eval(), x)
    predictor.predict(x)
    with Small(room).at_hand(), pytest.raises(OutOfMemory, match=said):
        predictor.predict(x)
    assert OutOfMemory.status == 503


def test_a_plan_that_cannot_be_tried_is_no_fault_of_the_networks() -> None:
    x = rows(3)
    predictor = Predictor.capture(network(), x)

    def full(*given: Any) -> Any:
        raise torch.OutOfMemoryError(FULL)

    with (
        patch.object(Compiled, "_run", full),
        pytest.raises(OutOfMemory, match=r"no memory for the rows, or for trying their plan \(Tried to allocate "),
    ):
        predictor.predict(x)
    close(predictor.predict(x), Predictor.capture(network(), x).predict(x))
