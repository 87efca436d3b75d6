"""Packed weight masks: the bits and answers of the plain path, in every scope and at every rate, where they serve."""

import functools
from collections.abc import Callable

import pytest
import torch
from specimen import WIDTH, features, sequence, tokens
from torch import Tensor, nn
from zoo_weights import LinearTwice, TiedWeights

from service import Predictor
from service.dropout import DropConnect, Stream
from service.errors import SelfCheckFailed
from service.graph.bit_masks import MaskedLinear, PackedDropConnect
from service.plan import make_plan

Inputs = Callable[[int], tuple[Tensor, ...]]


def rows_of(*shape: int) -> Inputs:
    return lambda rows: (torch.randn(rows, *shape),)


LAYERS = {
    "with a bias": lambda: nn.Sequential(nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, 3)),
    "without a bias": lambda: nn.Sequential(nn.Linear(WIDTH, 9, bias=False), nn.ReLU(), nn.Linear(9, 3, bias=False)),
    "one unit": lambda: nn.Sequential(nn.Linear(WIDTH, 1), nn.Tanh(), nn.Linear(1, 2)),
    "used twice": LinearTwice,
}
CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "of images": (
        lambda: nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3)),
        rows_of(4, 6, 5),
    ),
    "without a bias, in steps": (lambda: nn.Conv2d(4, 6, (3, 1), stride=2, dilation=2, bias=False), rows_of(4, 7, 6)),
    "of the same size, in groups": (lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), rows_of(4, 5, 5)),
    "of sequences": (lambda: nn.Sequential(nn.Conv1d(4, 6, 3), nn.Tanh(), nn.Conv1d(6, 2, 2)), rows_of(4, 9)),
    "of volumes": (lambda: nn.Conv3d(2, 3, 2), rows_of(2, 3, 4, 3)),
}


def samples(predictor: Predictor, inputs: tuple[Tensor, ...], **asked: object) -> Tensor:
    found = predictor.predict(inputs, variant="dropconnect", passes=7, quantities=["samples"], **asked)  # type: ignore[arg-type] # a request's
    return found.outputs["output"]["samples"]


def packs(predictor: Predictor, p: float | None = None) -> bool:
    noises = predictor.compile(make_plan(predictor.sites, "dropconnect", p))._fast.noises
    return any(isinstance(noise.variant, PackedDropConnect) for noise in noises)


@functools.cache
def twins(make: Callable[[], nn.Module], inputs: Inputs) -> tuple[Predictor, Predictor]:
    """Capture a network twice, one to pack and one to be kept from it; a plan is compiled once for all that ask."""
    network = make().eval()
    return Predictor.capture(network, inputs(3)), Predictor.capture(network, inputs(3))


@pytest.mark.parametrize("buffer", [1, 200, 1 << 18])
@pytest.mark.parametrize("scope", ["pass", "row"])
@pytest.mark.parametrize("p", [0.5, 0.3, 0.75])
@pytest.mark.parametrize("inputs", [features, sequence], ids=["features", "sequence"])
@pytest.mark.parametrize("layers", LAYERS)
def test_packed_masks_give_the_passes_of_the_plain_path(
    layers: str, inputs: Inputs, p: float, scope: str, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.graph.bit_masks._BUFFER_ELEMENTS", buffer)
    _compare(LAYERS[layers], inputs, p, scope, monkeypatch)


@pytest.mark.parametrize("scope", ["pass", "row"])
@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("layers", CONVOLUTIONS)
def test_convolutions_have_the_passes_of_the_plain_path(
    layers: str, p: float, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _compare(*CONVOLUTIONS[layers], p, scope, monkeypatch)


def _compare(
    make: Callable[[], nn.Module], inputs: Inputs, p: float, scope: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (fast, plain), given = twins(make, inputs), inputs(3)
    assert packs(fast, p)
    found = samples(fast, given, p=p, scope=scope, row_offset=5)
    with monkeypatch.context() as patch:
        patch.setattr("service.graph.compiled.form_on", lambda device: None)
        assert not packs(plain, p)
        expected = samples(plain, given, p=p, scope=scope, row_offset=5)

    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_rectifier_behind_a_masked_layer_is_done_with_it() -> None:
    predictor = Predictor.capture(LAYERS["with a bias"]().eval(), features(3))
    suffix = predictor.compile(make_plan(predictor.sites, "dropconnect", None))._split.suffix
    targets = [node.target for node in suffix.graph.nodes]

    assert torch.ops.aten.relu.default not in targets
    assert [each.rectifies for each in targets if isinstance(each, MaskedLinear)] == [True, False]


@pytest.mark.parametrize("q", [0.5, 0.7])
@pytest.mark.parametrize("rows", [None, range(4, 6)])
def test_packed_bits_are_the_variants_own(q: float, rows: range | None) -> None:
    stream, shape = Stream(3, "layer.weight", 2, 5, rows), (17, 33)
    packed = PackedDropConnect(1 - q)
    bits = packed.unpack(packed.draw(stream, shape), 17 * 33).view(5, -1, *shape)

    assert torch.equal(bits / q, DropConnect(1 - q).draw(stream, shape))


def test_a_half_takes_a_bit_and_no_float_for_each_weight() -> None:
    stream, shape = Stream(0, "layer.weight", 0, 3), (64, 100)

    assert PackedDropConnect(0.5).draw(stream, shape).nbytes == 3 * 64 * 100 / 8
    assert PackedDropConnect(0.3).draw(stream, shape).nbytes == 3 * 64 * 100


class TwoBranches(nn.Module):
    """A linear layer beside a weight that is multiplied in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.a(x)) @ self.b


@pytest.mark.parametrize("network", [TwoBranches, TiedWeights], ids=["a product of another form", "tied to a table"])
def test_where_a_weight_is_used_in_another_way_the_plain_path_runs(network: type[nn.Module]) -> None:
    predictor = Predictor.capture(network().eval(), features(3) if network is TwoBranches else tokens(3))

    assert not packs(predictor)
    assert predictor.predict(features(3) if network is TwoBranches else tokens(3), variant="dropconnect").passes == 100


def test_a_faulty_product_is_found_before_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor.capture(LAYERS["with a bias"]().eval(), features(3))
    whole = MaskedLinear.__call__
    monkeypatch.setattr(MaskedLinear, "__call__", lambda self, *given: whole(self, *given) * 1.001)

    with pytest.raises(SelfCheckFailed, match="no way of running several passes agrees"):
        samples(predictor, features(3))
