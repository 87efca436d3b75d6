"""Passes by a graph that was captured are the passes, whatever noise and rows come; a stand-in captures on the CPU."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service import Predictor
from service.ask import Asked
from service.graph import replayed
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.replayed import OnGpu, Replay, Replays, capture_on, replays_on, round_rows
from service.prediction import Prediction
from service.question import finished, together


class StandIn:
    """Captures by remembering the work; a replay does it again on what it then finds in the same inputs."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0
        self.ready = True
        self.spoil: Callable[[list[Tensor]], None] = lambda outputs: None

    def is_ready(self) -> bool:
        return self.ready

    def __call__(self, work: Callable[[], list[Tensor]]) -> tuple[Replay, list[Tensor]]:
        self.captured += 1
        outputs = [torch.empty_like(each) for each in work()]

        def replay() -> None:
            self.replayed += 1
            for mine, made in zip(outputs, work(), strict=True):
                mine.copy_(made)
            self.spoil(outputs)

        return replay, outputs


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    found = StandIn()
    monkeypatch.setattr("service.graph.compiled.capture_on", lambda device: found)
    return found


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2)).eval()


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("plan", [{}, {"scope": "row"}, {"variant": "dropconnect", "p": 0.2}], ids=str)
def test_replays_with_other_noise_and_other_rows_are_those_passes(stand_in: StandIn, plan: dict[str, Any]) -> None:
    plain, fast = Predictor.capture(network(), rows(2)), Predictor.capture(network(), rows(2))
    for seed in range(8):
        x = rows(3, seed)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("service.graph.compiled.capture_on", lambda device: None)
            expected = plain.predict(x, passes=20, seed=seed, quantities=["samples"], **plan)
        found = fast.predict(x, passes=20, seed=seed, quantities=["samples"], **plan)
        torch.testing.assert_close(found["samples"], expected["samples"])
    assert stand_in.captured == 1
    assert stand_in.replayed > 4


def wrong(outputs: list[Tensor]) -> None:
    outputs[0].add_(1)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each chunk of passes had."""
    found, run = list[int](), Compiled.run

    def noted(plan: Compiled, values: Any, shapes: Any, draw: Draw) -> list[Tensor]:
        found.append(shapes[0][0])
        return run(plan, values, shapes, draw)

    monkeypatch.setattr(Compiled, "run", noted)
    return found


def plainly(monkeypatch: pytest.MonkeyPatch, module: nn.Module, x: Tensor, **asked: Any) -> Prediction:
    """Return what a device without graphs answers."""
    with monkeypatch.context() as patch:
        patch.setattr("service.graph.compiled.capture_on", lambda device: None)
        return Predictor.capture(module, rows(2)).predict(x, **asked)


def same(found: Prediction, expected: Prediction) -> None:
    assert found.passes == expected.passes
    for output, quantities in expected.outputs.items():
        for name, values in quantities.items():
            torch.testing.assert_close(found.outputs[output][name], values, rtol=1e-5, atol=1e-6, msg=name)


ASKED: list[dict[str, Any]] = [
    {"passes": 20, "quantities": ["samples", "deterministic"]},
    {"passes": 20, "scope": "row", "row_offset": 3, "quantities": ["samples"]},
    {"passes": 20, "variant": "dropconnect", "p": 0.2},
    {"passes": 20, "variant": "dropconnect", "p": 0.2, "scope": "row"},
    {"passes": 20, "variant": "dropconnect-sampled", "scope": "row"},
    {"passes": 20, "estimator": "integrated", "sites": {"input": {"variant": "bernoulli", "p": 0.2}}},
    {"passes": 500, "tolerance": 0.15},
    {"passes": 500, "tolerance": 0.15, "scope": "row"},
]


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_numbers_of_rows_that_are_alike_share_a_graph_and_answers_are_those_without(
    stand_in: StandIn, ran: list[int], monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    fast = Predictor.capture(network(), rows(2))
    for count in (5, 6, 7, 8, 5):
        x = rows(count) * torch.linspace(0.1, 4, count)[:, None]
        expected = plainly(monkeypatch, network(), x, **asked)
        ran.clear()
        same(fast.predict(x, **asked), expected)
        assert set(ran) <= {1, 2, 4, 8}
    if "tolerance" not in asked:
        assert ran == [8]
        assert (stand_in.captured, stand_in.replayed) == (1, 3), "the first replay is the check"
    else:
        assert len(set(ran)) > 1, "rows left"


def test_rows_of_several_asks_are_filled_up_together(
    stand_in: StandIn, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = [{"passes": 40}, {"passes": 9}, {"passes": 300, "tolerance": 0.3}, {"passes": 40}]
    given = [rows(count, seed=count) for count in (3, 2, 5, 1)]
    for scope in ("pass", "row"):
        expected = [plainly(monkeypatch, network(), x, scope=scope, **own) for x, own in zip(given, asked, strict=True)]
        fast = Predictor.capture(network(), rows(2))
        questions = [fast.question(x, Asked(scope=scope, **own)) for x, own in zip(given, asked, strict=True)]
        ran.clear()
        answers = finished(together(questions))
        assert ran[0] == 16, "eleven rows"
        assert len(set(ran)) > 1
        for place, answer in answers.items():
            same(answer, expected[place])
        assert len(answers) == len(asked)


class Coupled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x - x.mean(0))


def test_where_another_row_would_change_the_answer_none_is_added(
    stand_in: StandIn, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = plainly(monkeypatch, Coupled().eval(), rows(5), passes=20)
    ran.clear()
    for _ in range(4):
        same(Predictor.capture(Coupled().eval(), rows(2)).predict(rows(5), passes=20), expected)
    assert set(ran) == {5}


@pytest.mark.parametrize("how", ["none", "fault", "elsewhere"])
def test_where_nothing_is_captured_no_row_is_added(
    stand_in: StandIn, ran: list[int], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "none":
        monkeypatch.setattr("service.graph.compiled.capture_on", lambda device: None)
    fast = Predictor.capture(network(), rows(2))
    stand_in.ready = how != "elsewhere"
    stand_in.spoil = wrong
    for _ in range(4):
        fast.predict(rows(5), passes=20)
    assert ran == ([8, 8, 8, 5] if how == "fault" else [5] * 4)


def test_rows_are_added_as_far_as_there_is_memory(
    stand_in: StandIn, ran: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, x = Predictor.capture(network(), rows(2)), rows(21)
    footprint = fast.prepared(Asked()).run.compiled.footprint((x,), per_row=False)
    expected = plainly(monkeypatch, network(), x, passes=20)
    for most in (7, 24, 32):
        ran.clear()
        same(fast.predict(x, passes=20, memory_bytes=footprint.of_rows(most)), expected)
        assert set(ran) == ({7} if most == 7 else {most})


def test_a_round_number_is_as_many_rows_and_few_more() -> None:
    assert [round_rows(count) for count in (1, 2, 3, 5, 8, 9, 33, 64, 65)] == [1, 2, 4, 8, 8, 16, 64, 64, 80]
    assert all(count <= round_rows(count) <= 1.28 * count for count in range(65, 3000))
    assert len({round_rows(count) for count in range(1, 1025)}) == 7 + 4 * 4


def add(values: Any, noises: Any) -> list[Tensor]:
    return [values[0] * values[1] + noises[0]]


def test_an_answer_is_not_changed_by_the_next_replay() -> None:
    replays, answers = Replays(StandIn()), []
    for each in range(6):
        answers += replays.run("sum", add, (torch.full((2,), float(each)), 2), [torch.ones(2)])
    assert [answer.tolist() for answer in answers] == [[2.0 * each + 1] * 2 for each in range(6)]


def test_shapes_types_and_sizes_have_graphs_of_their_own_and_the_last_used_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(replayed, "_GRAPHS_KEPT", 2)
    stand_in = StandIn()
    replays, ones = Replays(stand_in), [torch.ones(1)]
    kinds = [(torch.ones(2), 2), (torch.ones(2, dtype=torch.float64), 2), (torch.ones(2), 3), (torch.ones(3), 2)]
    for values in kinds:
        for _ in range(4):
            assert replays.run("sum", add, values, ones)[0][0] == values[1] + 1
    assert stand_in.captured == 4
    assert len(replays._graphs) == 2
    before = stand_in.replayed
    replays.run("sum", add, kinds[-1], ones)
    assert stand_in.replayed == before + 1
    replays.run("sum", add, kinds[0], ones)
    assert stand_in.replayed == before + 1  # it had to go


def test_shapes_that_come_seldom_are_not_counted_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replayed, "_SHAPES_COUNTED", 4)
    replays = Replays(StandIn())
    for count in range(1, 12):
        replays.run("sum", add, (torch.ones(count), 1), [torch.ones(1)])
        assert len(replays._counts) <= 4


def broken(work: Any) -> Any:
    raise RuntimeError("operation not permitted when stream is capturing\nand more")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("broken", "RuntimeError: operation not permitted when stream is capturing"),
        ("wrong", "a replay differs from the passes that were captured"),
    ],
)
def test_where_graphs_do_not_serve_plain_passes_do_and_the_log_says_so_once(
    how: str, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in = StandIn()
    stand_in.spoil = wrong
    if how == "broken":
        monkeypatch.setattr(StandIn, "__call__", lambda self, work: broken(work))
    replays = Replays(stand_in)
    with caplog.at_level(logging.WARNING, "thinnet"):
        for _ in range(9):
            assert replays.run("sum", add, (torch.ones(2), 2), [torch.ones(2)])[0].tolist() == [3, 3]
    assert caplog.messages == [f"passes run without CUDA graphs: {said}"]


def test_without_memory_for_a_graph_the_others_go_and_passes_run(caplog: pytest.LogCaptureFixture) -> None:
    stand_in = StandIn()
    replays = Replays(stand_in)
    for _ in range(4):
        replays.run("sum", add, (torch.ones(2), 2), [torch.ones(2)])

    def full(outputs: list[Tensor]) -> None:
        raise torch.OutOfMemoryError

    stand_in.spoil = full
    for _ in range(3):
        assert replays.run("sum", add, (torch.ones(3), 2), [torch.ones(3)])[0].tolist() == [3, 3, 3]
    assert not replays._graphs
    assert replays.fault is None
    assert not caplog.messages


def test_passes_that_find_no_memory_are_told_so_once_the_graphs_are_gone() -> None:
    replays = Replays(StandIn())
    for _ in range(4):
        replays.run("sum", add, (torch.ones(2), 2), [torch.ones(2)])

    def full(values: Any, noises: Any) -> list[Tensor]:
        raise torch.OutOfMemoryError("no room")

    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        replays.run("sum", full, (torch.ones(3), 2), [torch.ones(3)])
    assert not replays._graphs


def test_in_another_stream_passes_run_plainly() -> None:
    stand_in = StandIn()
    stand_in.ready = False
    replays = Replays(stand_in)
    for _ in range(5):
        replays.run("sum", add, (torch.ones(2), 2), [torch.ones(2)])
    assert stand_in.captured == 0


def test_a_gpu_captures_in_its_own_stream_and_the_cpu_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for torch's calls tell which are made, and in what order."""
    did: list[Any] = []

    class Graph:
        def replay(self) -> None:
            did.append("replay")

    def entered(name: str) -> Callable[..., AbstractContextManager[None]]:
        def enter(*given: Any, **named: Any) -> AbstractContextManager[None]:
            did.append((name, *(str(each) for each in given[1:] or given), *named.items()))
            return nullcontext()

        return enter

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "here")
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: "here")
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, entered(name))
    assert capture_on(torch.device("cpu")) is None
    capture = capture_on(torch.device("cuda", 1))
    assert isinstance(capture, OnGpu)
    assert capture.is_ready()
    replay, outputs = capture(lambda: [torch.ones(1)])
    replay()
    assert outputs == [torch.ones(1)]
    assert did[-1] == "replay"
    assert ("device", "cuda:1") in did
    assert any(("pool", "pool") in each and ("capture_error_mode", "thread_local") in each for each in did)


def test_what_is_captured_is_told() -> None:
    assert replays_on(torch.device("cpu")) == "no CUDA graphs on cpu"
    assert "whose shapes come for the 3rd time" in replays_on(torch.device("cuda"))
