"""Questions that one run answers together: each gets what it gets alone, whatever the others ask."""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.ask import Asked
from service.costs import Costs
from service.graph.footprint import Footprint
from service.graph.rates import assumed, measured
from service.job import Pending
from service.part import Step
from service.prediction import Prediction
from service.question import Question, finished, together
from service.run import Run
from service.signature import Activation, Output, Task
from service.transfers import Receipt, received

SOFTMAX = Output(task=Task.CLASSIFICATION, activation=Activation.SOFTMAX)
PLANS: list[dict[str, Any]] = [
    {},
    {"scope": "row"},
    {"estimator": "sampled", "variant": "gaussian"},
    {"variant": "dropconnect", "p": 0.2},
    {"variant": "dropconnect-sampled", "p": 0.2},
    {"precision": "bfloat16"},
]


@functools.cache
def classifier() -> Predictor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(),
                                nn.Dropout(0.4), nn.Linear(8, 3)).eval()  # fmt: skip
        return Predictor.capture(network, torch.randn(2, 4), outputs=[SOFTMAX])


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def same(found: Prediction, expected: Prediction, **allowed: float) -> None:
    assert (found.passes, found.seed, found.scope, found.notes) == (
        expected.passes, expected.seed, expected.scope, expected.notes,
    )  # fmt: skip
    mine, theirs = found.outputs["output"], expected.outputs["output"]
    assert list(mine) == list(theirs)
    for name, values in mine.items():
        torch.testing.assert_close(values, theirs[name], **{"rtol": 1e-4, "atol": 1e-6} | allowed, msg=name)


def asks(plan: dict[str, Any]) -> list[tuple[Tensor, dict[str, Any]]]:
    return [
        (rows(3, 1), {"passes": 40}),
        (rows(1, 2), {"passes": 90, "quantities": ["standard_error", "deterministic"]}),
        (rows(4, 3), {"passes": 40}),
        (rows(2, 4), {"passes": 17, "quantities": ["samples", "quantile_0.9"]}),
        (rows(6, 5), {"passes": 700, "tolerance": 0.15}),
        (rows(5, 6), {"passes": 700, "tolerance": 0.15}),
        (rows(1, 7), {"passes": 300, "tolerance": 0.3}),
    ]


def questions(predictor: Predictor, plan: dict[str, Any]) -> list[Question]:
    offsets = {"row_offset": 5} if plan.get("scope") == "row" else {}
    return [predictor.question(x, Asked(**plan, **own, **offsets)) for x, own in asks(plan)]


def test_all_integrated_passes_at_once_are_to_the_bit_those_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(),
                            nn.Dropout(0.4), nn.Linear(8, 3)).eval()  # fmt: skip
    predictor = Predictor.capture(network, torch.randn(2, 4))
    asked = Asked(passes=40, estimator="integrated", quantities=["standard_error", "variance_error"])
    several = [predictor.question(rows(2, 1), asked), predictor.question(rows(3, 2), asked)]
    at_once = Run._at_once(several[0].run, [each.part for each in several], footprint(several[0]), None)
    monkeypatch.setattr(Run, "_at_once", lambda *_: None)
    blocks = finished(together(several))

    assert at_once is not None
    for place, receipt in enumerate(at_once):
        assert [*receipt.tensors()[0]] == [*blocks[place].outputs["output"]]
        for name, values in receipt.tensors()[0].items():
            torch.testing.assert_close(values, blocks[place].outputs["output"][name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "is_at_once"),
    [({}, True), ({"tolerance": 0.2}, False), ({"memory_bytes": 1}, False), ({"passes": 10_000}, False)],
)
def test_passes_run_at_once_where_they_are_one_chunk_alone(change: dict[str, Any], is_at_once: bool) -> None:
    question = classifier().question(rows(30, 1), Asked(**{"passes": 40} | change))
    small, large = Step(30 * 40 - 1, 1.0), Step(30 * 10_000 * 2, 1.0)
    of = functools.partial(Run._at_once, question.run, [question.part], footprint(question))

    with assumed(replace(measured(), cache_bytes=1 << 20)):
        assert (of(large) is not None) == is_at_once
        assert of(small) is None


def footprint(question: Question) -> Footprint:
    return question.run.compiled.footprint(question.part.tensors, question.part.ask.per_row)


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_each_is_answered_as_if_it_were_alone(plan: dict[str, Any]) -> None:
    several = questions(classifier(), plan)
    assert len({each.key for each in several}) == 1
    assert several[1].fits(several[:1])

    allowed = {"rtol": 0.02, "atol": 1e-3} if plan.get("precision") else {}
    answers = finished(together(several))
    assert sorted(answers) == list(range(len(several)))
    for place, alone in enumerate(several):
        same(answers[place], finished(together([alone]))[0], **allowed)


class Late(Receipt):
    """What is not there before it is waited for: until then it holds no numbers."""

    waited = 0

    def __init__(self, found: Sequence[Mapping[str, Tensor]]) -> None:
        self._real = received(found).tensors()
        self._there = False
        super().__init__([{name: _spoilt(x) for name, x in each.items()} for each in self._real])

    def is_ready(self) -> bool:
        return self._there

    def tensors(self) -> list[dict[str, Tensor]]:
        Late.waited += not self._there
        self._there = True
        for mine, real in zip(self._moved, self._real, strict=True):
            for name, x in real.items():
                mine[name].copy_(x)
        return super().tensors()


def _spoilt(x: Tensor) -> Tensor:
    return torch.full_like(x, torch.nan if x.dtype.is_floating_point else -1)


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> type[Late]:
    monkeypatch.setattr("service.run.received", Late)
    monkeypatch.setattr(Late, "waited", 0)
    return Late


@pytest.mark.parametrize("plan", [{}, {"scope": "row"}], ids=str)
def test_nothing_is_read_before_it_is_there(
    plan: dict[str, Any], late: type[Late], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("service.run.received", received)
        expected = finished(together(questions(classifier(), plan)))
    steps = [*together(questions(classifier(), plan))]

    assert sum(isinstance(each, Pending) for each in steps) > 3, "for each who is answered apart"
    answers = finished(iter(steps))
    assert sorted(answers) == sorted(expected)
    for place, answer in answers.items():
        same(answer, expected[place])


def test_results_on_their_way_are_told_before_they_are_waited_for(late: type[Late]) -> None:
    steps = together([classifier().question(rows(3, 1), Asked(passes=9))])
    pending = next(steps)
    assert isinstance(pending, Pending)
    assert not pending.is_ready()
    assert late.waited == 0
    assert list(next(steps)) == [0]
    assert (late.waited, pending.is_ready()) == (1, True)


def test_no_more_than_two_blocks_of_rows_are_ahead(late: type[Late], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = classifier().question(rows(50, 1), Asked(passes=30))
    with monkeypatch.context() as patch:
        patch.setattr("service.run.received", received)
        expected = finished(together([whole]))[0]
    parts = classifier().question(rows(50, 1), Asked(passes=30))
    parts.serve("", Step(7, 10.0))
    seen, taken, made = [], together([parts]), [0]
    init = Late.__init__

    def counted(self: Late, found: Sequence[Mapping[str, Tensor]]) -> None:
        made[0] += 1
        init(self, found)

    monkeypatch.setattr(Late, "__init__", counted)
    for found in taken:
        seen.append(made[0] - late.waited)
        answers = found
    assert max(seen) == 2
    assert made[0] == 8
    same(answers[0], expected)


def test_what_is_there_at_once_is_no_step_of_its_own() -> None:
    answered = list(together([classifier().question(rows(3, 1), Asked(passes=9))]))
    assert [list(found) for found in answered] == [[0]]


@pytest.mark.parametrize("gone", [[0], [2], [0, 2], [4], [1, 4, 5]])
def test_those_who_leave_change_nothing_for_the_others(gone: Sequence[int]) -> None:
    several = questions(classifier(), {})
    stepped = 0

    def still() -> bool:
        return stepped < 1

    for index in gone:
        several[index].wait_for(still)
    answers = {}
    for found in together(several):
        answers |= found
        stepped += 1

    assert sorted(answers) == [index for index in range(len(several)) if index not in gone]
    for index, answer in answers.items():
        same(answer, finished(together([several[index]]))[0])


def test_each_is_answered_once_it_has_had_its_passes() -> None:
    several = questions(classifier(), {})
    for each in several:
        each.serve("", Step(128, 10.0))  # the first steps hold less than the least asks for
    answered = list(together(several))
    order = [place for found in answered for place in found]
    passes = [each.passes for found in answered for each in found.values()]

    assert sorted(order) == list(range(len(several))), "each once"
    assert passes == sorted(passes)
    assert order[:4] == [3, 0, 2, 1], "17 passes, then 40, then 90"
    assert passes[4] < passes[-1], "rows of one rule that end apart are answered apart"
    assert [0, 2] in map(list, answered), "what ends together is"


def test_nothing_runs_once_everybody_has_left() -> None:
    asked = classifier().question(rows(3, 1), Asked(passes=10_000, quantities=["samples"], memory_bytes=1 << 28))
    small = replace(asked, run=replace(asked.run, memory_bytes=1 << 16))
    small.wait_for(lambda: False)
    steps = together([small])
    next(steps)
    assert finished(steps) == {}


def test_rows_run_in_blocks_of_the_size_allowed_and_say_the_same() -> None:
    whole = classifier().question(rows(50, 1), Asked(passes=30))
    parts = classifier().question(rows(50, 1), Asked(passes=30))
    parts.serve("", Step(7, 10.0))

    same(finished(together([parts]))[0], finished(together([whole]))[0])
    assert not parts.fits([parts])
    assert whole.fits([parts])


def test_a_step_of_passes_is_as_long_as_it_may_be() -> None:
    asked = classifier().question(rows(50, 1), Asked(passes=4000))
    asked.serve("", Step(100, 0.002))
    took = []
    began = time.perf_counter()
    for _ in islice(together([asked]), 100):
        took.append(time.perf_counter() - began)
        began = time.perf_counter()

    assert len(took) > 5
    assert median(took) < 0.01


@pytest.mark.parametrize("before", [None, (8, 0.1), (8, 0.001), (1, 100.0)])
def test_steps_are_powers_of_two(before: tuple[int, float] | None) -> None:
    passes = Step(1000, 0.05).passes(10, before)
    assert passes == {None: 64, (8, 0.1): 4, (8, 0.001): 32, (1, 100.0): 1}[before]


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"variant": "gaussian"}, {"p": 0.3}, {"scope": "row"}, {"precision": "bfloat16"},
     {"sites": {"2": "off"}}],
    ids=str,
)  # fmt: skip
def test_what_differs_in_noise_or_plan_never_runs_together(other: dict[str, Any]) -> None:
    predictor = classifier()
    assert predictor.question(rows(1, 1), Asked()).key != predictor.question(rows(1, 1), Asked(**other)).key


def test_a_network_that_couples_its_rows_runs_alone() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.drop(x - x.mean(0))
            return y

    predictor = Predictor.capture(Centred().eval(), torch.randn(3, 4))
    assert predictor.question(rows(3, 1), Asked()).key is None


def test_costs_are_learned_by_kind() -> None:
    costs, predictor = Costs(), classifier()
    one, many = (predictor.question(rows(count, 1), Asked(passes=100)) for count in (1, 1000))
    other = predictor.question(rows(1000, 1), Asked(passes=100, variant="dropconnect"))
    for _ in range(100):
        costs.learn([one], 0.001)
        costs.learn([many], 2.0)
        costs.learn([other], 8.0)
        costs.learn([predictor.question(rows(1, 1), Asked(passes=100, variant="dropconnect"))], 0.01)

    assert costs.of(many) == pytest.approx(2.0, rel=0.1)
    assert costs.of(other) == pytest.approx(8.0, rel=0.1)
    assert costs.of(one) < 0.01
    assert costs.row_passes_in(0.02, many) == pytest.approx(1000, rel=0.1)


def test_small_runs_say_little_of_a_large_one() -> None:
    costs, predictor = Costs(), classifier()
    small, large = (
        predictor.question(rows(count, 1), Asked(passes=passes)) for count, passes in ((1, 20), (4000, 9999))
    )
    for _ in range(500):
        costs.learn([small], 0.002)

    assert costs.of(small) == pytest.approx(0.002, rel=0.1)
    assert 0.1 < costs.of(large) < 20
    costs.learn([large], 3.0)
    assert costs.of(large) == pytest.approx(3.0, rel=0.1)


def test_a_tolerance_costs_about_what_it_needs() -> None:
    costs, predictor = Costs(), classifier()
    plain, loose, tight = (
        predictor.question(rows(100, 1), Asked(passes=10_000, tolerance=tolerance)) for tolerance in (None, 0.2, 0.05)
    )
    assert costs.of(loose) < costs.of(tight) < costs.of(plain)
