"""Grouped products of what passes keep: a float64 reference, the engine's passes, and when they are chosen."""

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from service import Predictor
from service.graph import grouped
from service.graph.compiled import Compiled
from service.graph.grouped import GroupedLinear, GroupedRates
from service.graph.precision import BFLOAT16, FLOAT32
from service.plan import make_plan

pytest.importorskip("triton", reason="kernels need Triton, which is for Linux")

from service.graph.kernels.grouped import grouped_product

ERRORS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SIZES = st.sampled_from([1, 2, 7, 31, 32, 33, 65, 100])
FASTER = GroupedRates(plain=1.0, grouped=4.0)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 4), st.sampled_from([1, 2, 17, 70]), SIZES, SIZES, st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from([0.0, 0.5, 0.9]), st.sampled_from(list(ERRORS)),
)  # fmt: skip
def test_it_is_the_reference_of_masked_values(
    passes: int, rows: int, inner: int, outside: int, apart: bool, bias: bool, part: bool, p: float, dtype: torch.dtype
) -> None:
    """Also where a pass keeps nothing."""
    numbers = torch.Generator().manual_seed(inner * outside)
    x = torch.randn(passes if apart else 1, rows, inner, generator=numbers).to(dtype)
    weight, offset = torch.randn(outside, inner, generator=numbers), torch.randn(outside, generator=numbers)
    weight, offset = weight.to(dtype), offset.to(dtype)
    noise, after = (
        ((torch.rand(passes, units, generator=numbers) >= p) / (1 - p)).to(dtype) for units in (inner, outside)
    )
    expected = (x.double() * noise[:, None].double()) @ weight.t().double() + offset.double() * bias
    expected = expected * (after != 0)[:, None] if part else expected
    found = grouped_product(noise, x, weight, offset if bias else None, after if part else None)

    assert found.dtype == dtype
    assert (found.double() - expected).norm() <= ERRORS[dtype] * expected.norm()


def mlp() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Linear(6, 40), nn.ReLU(), nn.Dropout(0.3), nn.Linear(40, 30), nn.Sigmoid(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(30, 20, bias=False), nn.LayerNorm(20), nn.Linear(20, 3)).eval()


@pytest.fixture
def _kernels_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.graph.kernels.DEVICES", {"cpu"})


def grouped_in(predictor: Predictor, precision: str = FLOAT32) -> list[GroupedLinear]:
    compiled = Compiled(predictor._captured, make_plan(predictor.sites, None), precision)
    return [node.target for node in compiled._split.suffix.graph.nodes if isinstance(node.target, GroupedLinear)]


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("scope", ["pass", "row"])
def test_the_engine_gives_the_passes_of_the_plain_path(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = torch.randn(3, 6), {"scope": scope, "passes": 9, "quantities": ["samples"]}
    monkeypatch.setattr("service.graph.grouped._known", {(x.device, torch.float32): FASTER})
    predictor = Predictor.capture(mlp(), (x,))
    given: dict[str, Any] = asked
    found = predictor.predict(x, **given)
    with monkeypatch.context() as patch:
        patch.setattr("service.graph.compiled.form_on", lambda device: None)
        expected = Predictor.capture(mlp(), (x,)).predict(x, **given)

    samples = (each.outputs["output"]["samples"] for each in (found, expected))
    torch.testing.assert_close(*samples, rtol=1e-5, atol=2e-6)
    assert [(each.pays, each.following is not None) for each in grouped_in(predictor)] == [(True, True), (True, False)]
    said = "2, 5: whole products stand in for grouped ones: rows keep units of their own"
    assert [note for note in found.notes if "grouped" in note] == ([said] if scope == "row" else [])


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("scope", ["pass", "row"])
def test_products_in_bfloat16_are_grouped_too(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, asked = torch.randn(3, 6), {"scope": scope, "passes": 9, "quantities": ["samples"]}
    rates = dict.fromkeys(((x.device, torch.float32), (x.device, torch.bfloat16)), FASTER)
    monkeypatch.setattr("service.graph.grouped._known", rates)
    predictor, given = Predictor.capture(mlp(), (x,)), cast(dict[str, Any], asked)
    wide, found = (predictor.predict(x, precision=each, **given) for each in (FLOAT32, BFLOAT16))
    with monkeypatch.context() as patch:
        patch.setattr("service.graph.compiled.group_products", lambda split: split)
        whole = Predictor.capture(mlp(), (x,)).predict(x, precision=BFLOAT16, **given)

    expected, *samples = (each.outputs["output"]["samples"] for each in (wide, found, whole))
    errors = [(each - expected).norm() / expected.norm() for each in samples]
    assert errors[0] < min(1e-2, 1.5 * errors[1])
    told = [(each.pays, each.following is not None) for each in grouped_in(predictor, BFLOAT16)]
    assert told == [(True, True), (True, False)]


class ReadTwice(nn.Module):
    """Dropped units that a linear layer takes, and that are an output themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dropped = self.drop(self.first(x).relu())
        return self.second(dropped), dropped


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("precision", [FLOAT32, BFLOAT16])
def test_a_value_that_something_else_reads_is_left_whole(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 6)
    rates = dict.fromkeys(((x.device, torch.float32), (x.device, torch.bfloat16)), FASTER)
    monkeypatch.setattr("service.graph.grouped._known", rates)
    predictor = Predictor.capture(ReadTwice().eval(), (x,))
    wide, found = (predictor.predict(x, precision=each, passes=5) for each in (FLOAT32, precision))

    assert grouped_in(predictor, precision) == []
    for name, output in wide.outputs.items():
        assert (found.outputs[name]["mean"] - output["mean"]).norm() < 1e-2 * output["mean"].norm()


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("scope", ["pass", "row"])
def test_where_grouped_products_fail_the_answer_says_so_once(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 6)
    rates = {(x.device, torch.float32): GroupedRates(1.0, 0.0, "RuntimeError: no room")}
    monkeypatch.setattr("service.graph.grouped._known", rates)
    found = Predictor.capture(mlp(), (x,)).predict(x, scope=scope, passes=3)

    assert found.notes == ("2, 5: whole products stand in for grouped ones: RuntimeError: no room",)


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("scope", ["pass", "row"])
def test_convolutions_of_dropped_channels_run_whole_and_the_answer_says_so_once(scope: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = [nn.Conv2d(3, 4, 3), nn.Dropout2d(0.5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3)]
    others = [nn.Dropout(0.5), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(2, 2)]  # units, of which none is a channel
    found = Predictor.capture(nn.Sequential(*layers, *others).eval(), (x,)).predict(x, scope=scope, passes=3)

    said = "1: whole products stand in for grouped ones: no kernel groups convolutions"
    assert [note for note in found.notes if "grouped" in note] == [said]


@pytest.mark.usefixtures("_kernels_on_cpu")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("fault", "serves"), [(None, True), ("wrong", False), ("broken", False)])
def test_a_device_is_measured_and_a_kernel_that_is_wrong_or_fails_never_pays(
    fault: str | None, serves: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(*given: Any) -> torch.Tensor:
        if fault == "broken":
            raise RuntimeError("out of resource")
        return grouped_product(*given) * (1.05 if fault else 1)

    monkeypatch.setattr("service.graph.kernels.grouped.grouped_product", faulty)
    monkeypatch.setattr("service.graph.grouped._known", {})
    rates = grouped.measured_on(torch.device("cpu"), dtype)

    assert (rates.grouped > 0) is serves
    assert rates.pays(1e-12) is serves
    assert (rates.fault is None) is serves
    assert not rates.pays(1e12)
