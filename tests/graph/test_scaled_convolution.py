"""Convolutions that take in the site before them: each channel by itself once, and the whole graph's passes."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.ask import Asked
from service.graph import scaled_convolution
from service.graph.compiled import Compiled
from service.graph.drawing import Draw, draw_noises
from service.graph.passes import Mode
from service.graph.rates import TYPICAL, Rates, assumed
from service.graph.scaled_convolution import ScaledConvolution
from service.graph.thinning import Thinned
from service.graph.thinning_cost import pays
from service.plan import make_plan

CHANNELS, SIDE, PASSES = 5, 9, 40
LAYERS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: nn.Conv2d(CHANNELS, 4, 3),
    "padded": lambda: nn.Conv2d(CHANNELS, 4, 3, padding=1),
    "no bias": lambda: nn.Conv2d(CHANNELS, 4, 3, bias=False),
    "strided": lambda: nn.Conv2d(CHANNELS, 4, 5, stride=(2, 1), padding=(2, 0)),
    "dilated": lambda: nn.Conv2d(CHANNELS, 4, (3, 2), dilation=(2, 3), padding=(0, 2)),
    "one place": lambda: nn.Conv2d(CHANNELS, 4, SIDE),
    "rectified": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 4, 3), nn.ReLU()),
    "normalised": lambda: nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, padding=1, bias=False), normed(), nn.ReLU()),
}


def normed() -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4)
    for parameter in (norm.weight, norm.running_var):
        assert parameter is not None
        nn.init.uniform_(parameter, 0.5, 2)
    for parameter in (norm.bias, norm.running_mean):
        assert parameter is not None
        nn.init.normal_(parameter)
    return norm


def network(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, CHANNELS, 1), nn.Tanh(), nn.Dropout2d(0.3), *layers).eval()


def images(rows: int) -> Tensor:
    return torch.randn(rows, 2, SIDE, SIDE)


def captured(module: nn.Module) -> Predictor:
    return Predictor.capture(module, images(2))


def fused(predictor: Predictor, **plan: Any) -> list[ScaledConvolution]:
    nodes = predictor.compile(make_plan(predictor.sites, **plan))._split.suffix.graph.nodes
    return [node.target for node in nodes if isinstance(node.target, ScaledConvolution)]


@pytest.fixture
def by_channel(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Note the images of each convolution whose channels are convolved by themselves."""
    taken, plain = [], ScaledConvolution._by_channel

    def noted(self: ScaledConvolution, noise: Tensor, x: Tensor) -> Tensor:
        taken.append(tuple(x.shape))
        return plain(self, noise, x)

    monkeypatch.setattr(ScaledConvolution, "_by_channel", noted)
    return taken


@pytest.mark.parametrize("variant", ["spatial", "spatial-concrete"])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("layer", LAYERS)
def test_each_pass_is_the_whole_graphs(
    layer: str, rows: int, variant: str, by_channel: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In parts of seven positions, too."""
    monkeypatch.setattr(scaled_convolution, "_PART_BYTES", 7 * CHANNELS * 4 * 4)
    predictor, x = captured(network(LAYERS[layer]())), images(rows)
    compiled = Compiled(predictor._captured, make_plan(predictor.sites, variant))
    draw, shapes = Draw(4, 0, PASSES, None), [tuple(x.shape)]
    noises = draw_noises(compiled._rewritten.noises, predictor._captured.symbols, shapes, draw, x.device)
    assert compiled.mode(per_row=False) is Mode.FOLDED
    by_channel.clear()

    found = compiled.run(compiled.trunk((x,)), shapes, draw)[0]

    with torch.inference_mode():
        expected = torch.stack([compiled._rewritten.module(x, rows, noises[0][t])[0] for t in range(PASSES)])
    assert by_channel == [(rows, CHANNELS, SIDE, SIDE)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[0], found[1])


def test_mean_variance_and_what_positions_share_are_the_closed_forms(by_channel: list[tuple[int, ...]]) -> None:
    """Var y = (p / q) Σ_c (w_c ∗ x_c)², and positions share each channel's draw: so do their products."""
    layer = nn.Conv2d(CHANNELS, 4, 3)
    module, x = network(layer), images(2)
    with torch.no_grad():
        inside = module[1](module[0](x))
        alone = torch.stack([F.conv2d(inside[:, [c]], layer.weight[:, [c]]) for c in range(CHANNELS)]).flatten(2)
        mean = layer(inside).flatten(1)
    covariance = 0.3 / 0.7 * torch.einsum("cbi,cbj->bij", alone, alone)

    samples = captured(module).predict(x, passes=10_000, quantities=["samples"])["samples"].flatten(2)

    assert by_channel
    spread = covariance.diagonal(dim1=1, dim2=2).sqrt()
    assert ((samples.mean(1) - mean).abs() < 5 * spread / 100).all()
    centred = samples - mean[:, None]
    found = torch.einsum("bsi,bsj->bij", centred, centred) / 10_000
    of_each = spread[:, :, None] * spread[:, None]
    assert ((found - covariance).abs() < 0.12 * of_each).all()  # five standard errors of what has a kurtosis below 6
    assert (covariance / of_each).abs().mean() > 0.2


def test_few_passes_and_rows_with_networks_of_their_own_take_the_plain_path(by_channel: list[tuple[int, ...]]) -> None:
    predictor, x = captured(network(LAYERS["padded"]())), images(2)
    predictor.predict(x, passes=4)
    rows = predictor.predict(x, passes=PASSES, scope="row", quantities=["samples"])["samples"]
    assert not by_channel
    again = predictor.predict(x[:1], passes=PASSES, scope="row", quantities=["samples"])["samples"]
    torch.testing.assert_close(rows[:1], again, rtol=1e-4, atol=1e-5)
    predictor.predict(x, passes=PASSES)
    assert by_channel


@pytest.mark.parametrize(
    "module",
    [
        network(nn.Conv2d(CHANNELS, 5, 3, groups=5)),
        network(nn.ReLU(), nn.Conv2d(CHANNELS, 4, 3)),
        nn.Sequential(nn.Conv2d(2, CHANNELS, 1), nn.Dropout(0.3), nn.Conv2d(CHANNELS, 4, 3)),
        nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(2, CHANNELS, 1), nn.Dropout2d(0.3), nn.Conv2d(CHANNELS, 4, 3)),
    ],
    ids=["groups", "behind another layer", "by element", "behind another site"],
)  # fmt: skip
def test_other_convolutions_are_as_they_were(module: nn.Module, by_channel: list[tuple[int, ...]]) -> None:
    predictor, x = captured(module.eval()), images(2)
    predictor.predict(x, passes=PASSES)
    assert (CHANNELS, SIDE, SIDE) not in [shape[1:] for shape in by_channel]
    assert not predictor.compile(make_plan(predictor.sites)).gains_by_passes
    assert not fused(predictor), "nor are those of a single tap, such as the last network's first"


def test_many_rows_run_by_as_few_as_leave_the_cache_to_many_passes(by_channel: list[tuple[int, ...]]) -> None:
    """A pass of a row takes 7 · 7 · 4 numbers and more, so that some eighty of them are in a cache of 64 kB."""
    predictor, x = captured(network(LAYERS["plain"]())), images(20)
    asked = Asked(passes=PASSES)
    with assumed(replace(TYPICAL, cache_bytes=1 << 16)):
        few = predictor.predict(x, passes=PASSES)
        shapes = set(by_channel)
        compiled = predictor.prepared(asked).run.compiled
        assert compiled.gains_by_passes
        of_their_own = predictor.question(x, Asked(passes=PASSES, scope="row"))
        assert of_their_own.run.rows_together(of_their_own.part, None) > len(x)
        compiled.gains_by_passes = False
        by_channel.clear()
        together = predictor.predict(x, passes=PASSES)

    assert shapes
    assert max(rows for rows, *_ in shapes) <= 2
    assert not by_channel, "so few passes of all rows are in the cache that to convolve channels alone does not pay"
    torch.testing.assert_close(few.mean, together.mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(few.variance, together.variance, rtol=1e-4, atol=1e-6)


def test_what_drops_little_is_convolved_by_channel_and_what_drops_much_is_thinned() -> None:
    """By the rates of a common machine: 40 G operations, 5 G gathered and 10 G written elements each second."""
    rates = Rates(4e10, 5e9, 1e10, 1.5e-6, 1 << 24)
    layers = [nn.Conv2d(1, 64, 1), nn.Dropout2d(0.5), nn.Conv2d(64, 64, 5, padding=2), nn.Dropout2d(0.5)]
    predictor = Predictor.capture(nn.Sequential(*layers, nn.Conv2d(64, 2, 1)).eval(), torch.randn(2, 1, 16, 16))
    thinned = predictor.compile(make_plan(predictor.sites)).thinned
    assert thinned is not None
    assert [product.taps for product in thinned.products] == [25, 1]

    def is_thinned(thinned: Thinned, kept: float) -> bool:
        return pays(thinned, predictor._captured.symbols, [(64, 1, 16, 16)], (kept, kept), rates)

    elsewhere = replace(thinned, products=tuple(replace(product, taps=1) for product in thinned.products))
    assert [is_thinned(thinned, kept) for kept in (0.05, 0.5)] == [True, False]
    assert is_thinned(elsewhere, 0.5)


def test_a_site_whose_value_is_needed_elsewhere_stays(by_channel: list[tuple[int, ...]]) -> None:
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.layer = nn.Dropout2d(0.3), nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.drop(torch.tanh(x))
            y: Tensor = self.layer(h) + h
            return y

    predictor = captured(Shortcut().eval())
    predictor.predict(images(2), passes=PASSES)
    assert not by_channel
    assert not fused(predictor)
