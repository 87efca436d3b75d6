"""Every model's passes run where its state is: with all tensors faked on `cuda`, an operation on two devices fails."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from service import Predictor
from service.dropout import Stream
from service.errors import InvalidPlan
from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.plan import Plan, make_plan
from service.quantities import Accumulator, defaults

PASSES = 3
MIXED = "found at least two devices, cuda:0 and cpu"


class WithoutIndexing(TorchFunctionMode):
    """Index by operators: Python's own indexing asks for a CUDA device guard, which a CPU build of torch lacks."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return indexed(*args) if func is Tensor.__getitem__ else func(*args, **(kwargs or {}))


def indexed(x: Tensor, keys: Any) -> Tensor:
    axis = 0
    for key in keys if isinstance(keys, tuple) else (keys,):
        if isinstance(key, int):
            x = x.select(axis, key)
            continue
        if key is None:
            x = x.unsqueeze(axis)
        elif isinstance(key, Tensor):
            x = x.index_select(axis, key)
        else:
            x = torch.ops.aten.slice.Tensor(x, axis, key.start, key.stop, key.step or 1)
        axis += 1
    return x


def plans_of(predictor: Predictor) -> dict[str, Plan]:
    """Return the trained plan and that of every variant that fits somewhere."""
    variants = sorted({name for site in predictor.sites for name in predictor.fitting(site.name)})
    plans = {name: make_plan(predictor.sites, name, None, None) for name in ("trained", *variants)}
    return {name: plan for name, plan in plans.items() if serves(predictor, plan)}


def serves(predictor: Predictor, plan: Plan) -> bool:
    """Tell whether a plan can act at all its sites; what squares are dropped from must be images."""
    try:
        predictor.compile(plan)
    except InvalidPlan as error:
        if "takes images of" not in str(error):
            raise
        return False
    return True


def moved(captured: Captured, mode: FakeTensorMode, state_too: bool) -> Captured:
    """Move a network's example and state to a CUDA device that is not there; its state is gone afterwards."""

    def on_cuda(x: Tensor) -> Tensor:
        with mode:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cuda")

    for module in captured.program.graph.modules() if state_too else ():
        module._buffers |= {name: on_cuda(state) for name, state in module._buffers.items() if state is not None}
    return replace(captured, example=tuple(map(on_cuda, captured.example)))


def run_on_cuda(predictor: Predictor, state_too: bool = True) -> list[str]:
    """Run trunk, noise, suffix and statistics of every plan in both scopes; return the plans' variants."""
    plans = plans_of(predictor)
    with patch("service.graph.compiled.form_on", lambda device: None):  # masks are packed on the CPU alone
        at_home = [Compiled(predictor._captured, plan) for plan in plans.values()]
    modes = [{per_row: compiled.mode(per_row) for per_row in (False, True)} for compiled in at_home]
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # the noise's bits are made by NumPy
    captured = moved(predictor._captured, fake, state_too)
    shapes = [tuple(each.shape) for each in captured.example]
    with fake, WithoutIndexing():
        for plan, found in zip(plans.values(), modes, strict=True):
            with patch("service.graph.compiled.form_on", lambda device: None):  # kernels take no fakes
                compiled = Compiled(captured, plan)
            compiled._modes = found  # comparing numbers needs numbers
            for rows in (None, range(len(captured.example[0]))):
                outputs = compiled.run(compiled.trunk(captured.example), shapes, Draw(0, 0, PASSES, rows))
                for output, raw in zip(predictor.outputs, outputs, strict=True):
                    assert raw.device.type == "cuda"
                    statistics = Accumulator(output, defaults(output))
                    statistics.add(raw)
                    assert all(each.device.type == "cuda" for each in statistics.finish().values())
    return list(plans)


@pytest.mark.parametrize(
    ("name", "variants"),
    [
        ("digits", {"trained", "spatial", "bernoulli", "gaussian", "dropconnect", "dropconnect-sampled"}),
        ("digits-dropconnect", {"trained", "dropconnect", "dropconnect-sampled"}),
        ("digits-rows", {"trained", "variational-rnn", "rnn-drop", "recurrent-dropout", "zoneout", "dropconnect"}),
        ("diabetes", {"trained", "bernoulli", "gaussian", "dropconnect", "dropconnect-sampled"}),
    ],
)
def test_a_model_runs_where_its_state_is(name: str, variants: set[str], predictor: Callable[[str], Predictor]) -> None:
    assert variants <= set(run_on_cuda(predictor(name)))


class Rules(TorchDispatchMode):
    """Note what products of matrices and convolutions may run in while any runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(word in str(func) for word in ("linear", "mm", "convolution", "matmul", "conv2d")):
            self.seen |= {torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("precision", "rule"), [("float32", {"ieee", "none"}), ("tf32", {"tf32"})])
def test_trunk_and_passes_run_under_the_rule_that_was_asked_for(
    precision: str, rule: set[str], predictor: Callable[[str], Predictor]
) -> None:
    loaded = predictor("digits")
    plan, fake = make_plan(loaded.sites, "trained", None, None), FakeTensorMode(allow_non_fake_inputs=True)
    mode = Compiled(loaded._captured, plan).mode(per_row=False)
    captured = moved(loaded._captured, fake, state_too=True)
    x = captured.example
    with fake, WithoutIndexing():
        compiled = Compiled(captured, plan, precision)
        compiled._modes = {False: mode}
        with Rules() as trunk:
            values = compiled.trunk(x)
        with Rules() as passes:
            compiled.run(values, [tuple(each.shape) for each in x], Draw(0, 0, PASSES, None))
    assert trunk.seen
    assert passes.seen
    assert trunk.seen | passes.seen <= rule


class Mixed(nn.Module):
    """Adds a constant that is made on the CPU wherever the network is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 4), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear(x)) + torch.arange(4.0, device="cpu")


def test_a_constant_on_another_device_is_caught() -> None:
    with pytest.raises(RuntimeError, match=MIXED):
        run_on_cuda(Predictor.capture(Mixed(), torch.randn(2, 4)))


def test_noise_that_stays_on_the_cpu_is_caught(
    predictor: Callable[[str], Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, arranged = predictor("digits"), Stream._arranged
    at_home = torch.device("cpu")
    monkeypatch.setattr(Stream, "_arranged", lambda self, *given: arranged(replace(self, device=at_home), *given))
    with pytest.raises(RuntimeError, match=MIXED):
        run_on_cuda(loaded)


def test_state_that_stays_on_the_cpu_is_caught(predictor: Callable[[str], Predictor]) -> None:
    with pytest.raises(RuntimeError, match=MIXED):
        run_on_cuda(predictor("diabetes"), state_too=False)
