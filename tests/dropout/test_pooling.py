"""Pooling that draws, on windows of every geometry: every mask is tried, and the winners are counted."""

import warnings
from itertools import product

import pytest
import torch
from bench import ROWS, X, maps, stream
from laws import SIGMAS, variance_error
from scipy.stats import chisquare
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import (
    MaskedMaxPool1d,
    MaskedMaxPool2d,
    MaskedMaxPooling,
    MaxDrop,
    MaxDrop2d,
    MaxDropChannel,
    MaxPoolDropout1d,
    MaxPoolDropout2d,
    MaxPoolDropout3d,
    MaxPoolingDropout,
    StochasticPool1d,
    StochasticPool2d,
    StochasticPool3d,
    StochasticPooling,
)
from service.dropout.variant import PoolVariant
from service.dropout.windows import Window, maximum, taps
from service.errors import InvalidPlan

POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
GEOMETRIES = {
    "plain": (Window.of(2, 2), (2, 3, 6, 4)),
    "overlapping": (Window.of(2, 3, 2, 1), (2, 3, 7, 8)),
    "dilated": (Window.of(2, 2, 1, 0, 2), (2, 3, 5, 6)),
    "dilated and padded": (Window.of(2, 3, 2, 1, 2), (1, 2, 6, 7)),
    "beyond the end": (Window.of(2, 3, 2, 1, 1, True), (2, 3, 6, 7)),
    "windows that would start beyond the end": (Window.of(1, 2, 3, 1, 1, True), (2, 3, 8)),
    "gaps between": (Window.of(1, 2, 3), (2, 3, 9)),
    "another size on each axis": (Window.of(2, (1, 3), (2, 1), (0, 1)), (2, 3, 5, 4)),
    "one axis": (Window.of(1, 3, 1, 1), (2, 3, 5)),
    "three axes": (Window.of(3, 2, 2, 1), (1, 2, 4, 3, 4)),
}
EVERY_GEOMETRY = pytest.mark.parametrize(("window", "shape"), GEOMETRIES.values(), ids=GEOMETRIES)
KINDS = (MaxPoolingDropout(0.3), MaskedMaxPooling(0.3), StochasticPooling())
LAYERS = {
    "max_pooling_dropout": lambda: MaxPoolDropout2d(3, 2, 1, p=0.3),
    "masked_max_pooling": lambda: MaskedMaxPool2d(3, 2, 1, p=0.3),
    "stochastic_pooling": lambda: StochasticPool2d(3, 2, 1),
}
VARIANTS_OF_LAYERS = dict(zip(LAYERS, KINDS, strict=True))
ALL_LAYERS = {**LAYERS, "max_drop": lambda: MaxDrop2d(0.3)}


def positive(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).abs() + 0.01


@EVERY_GEOMETRY
def test_a_windows_entries_are_those_that_torch_pools(window: Window, shape: tuple[int, ...]) -> None:
    x = positive(shape) - 0.7
    kernel, stride, padding, dilation, ceil = window.sizes
    expected = POOLS[window.dims](x, kernel, stride, padding, dilation, ceil)

    assert torch.equal(maximum(x, window), expected)
    assert torch.equal(torch.stack(taps(x, window, float("-inf"))).amax(0), expected)
    assert torch.equal(maximum(x[None, :, :1], window)[0], expected[:, :1])
    assert window.outputs(shape[-window.dims :]) == expected.shape[-window.dims :]


def test_a_maximum_over_what_is_no_number_is_none_and_of_equal_entries_the_first_has_the_gradient() -> None:
    x, window = torch.tensor([[[1.0, torch.nan, 2.0, 3.0]]]), Window.of(1, 2)
    assert torch.equal(maximum(x, window).isnan(), torch.tensor([[[True, False]]]))
    equal = torch.zeros(1, 1, 4, requires_grad=True)
    maximum(equal, window).sum().backward()
    assert torch.equal(equal.grad, torch.tensor([[[1.0, 0.0, 1.0, 0.0]]]))


@EVERY_GEOMETRY
@pytest.mark.parametrize("variant", KINDS, ids=lambda each: each.name)
@pytest.mark.parametrize("shift", [0.0, 0.9], ids=["positive", "of both signs"])
def test_closed_forms_hold_for_windows_of_every_geometry(
    variant: PoolVariant, window: Window, shape: tuple[int, ...], shift: float
) -> None:
    x, passes = positive(shape) - shift, 20_000
    per_row = shape[1 : -window.dims] + window.outputs(shape[-window.dims :])
    noise = variant.draw(stream(passes), per_row if variant.per_window else shape[1:]).double()
    y, mean, variance = variant.apply(x, noise, window), variant.mean(x, window), variant.variance(x, window)

    assert y.shape == (passes, *mean.shape)
    assert ((y.mean(0) - mean).abs() <= SIGMAS * (variance.clamp_min(0) / passes).sqrt() + 1e-3).all()
    assert ((y.var(0) - variance).abs() <= SIGMAS * variance_error(y) + 1e-3).all()


@pytest.mark.parametrize("shift", [0.0, 0.4, 0.9, 9.0])
@pytest.mark.parametrize("padding", [0, 1])
def test_moments_of_max_pooling_dropout_are_those_over_all_masks(shift: float, padding: int) -> None:
    """All 2⁶ masks, weighted; with negative inputs too, which a dropped one beats."""
    x, window, variant = positive((6,)) - shift, Window.of(1, 3, 2, padding), MaxPoolingDropout(0.3)
    masks = torch.tensor(list(product([0.0, 1.0], repeat=6)), dtype=torch.float64)
    weights = (0.7**masks * 0.3 ** (1 - masks)).prod(1)[:, None]
    y = F.max_pool1d(masks * x, 3, 2, padding)
    mean = (weights * y).sum(0)

    torch.testing.assert_close(variant.mean(x, window), mean)
    torch.testing.assert_close(variant.variance(x, window), (weights * (y - mean) ** 2).sum(0))


def test_what_is_padded_by_hand_is_no_input_either() -> None:
    x, window, variant = (
        torch.tensor([[-1.0, -2.0]], dtype=torch.float64),
        Window.of(1, 2, 1, 1),
        MaxPoolingDropout(0.3),
    )
    by_hand, plain = F.pad(x, (1, 1), value=float("-inf")), Window.of(1, 2, 1)
    noise = variant.draw(stream(50), (4,)).double()

    for moment in (variant.mean, variant.variance):
        torch.testing.assert_close(moment(by_hand, plain), moment(x, window))
    torch.testing.assert_close(variant.apply(by_hand, noise, plain), variant.apply(x, noise[..., 1:3], window))


def test_at_a_rate_of_zero_max_pooling_dropout_is_max_pooling_of_any_input() -> None:
    x, window = positive((2, 3, 8, 8)) - 1.5, Window.of(2, 3, 2, 1)

    torch.testing.assert_close(MaxPoolingDropout(0.0).mean(x, window), maximum(x, window))
    torch.testing.assert_close(MaxPoolDropout2d(3, 2, 1, p=0.0).train()(x), maximum(x, window))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("of", ["variant", "layer"])
def test_the_right_input_wins_as_often_as_the_paper_says(of: str, p: float) -> None:
    """P(a₍ᵢ₎ wins) = q pⁿ⁻ⁱ and P(0) = pⁿ, by χ²; n = 4."""
    x, passes, n = torch.tensor([3.0, 1.0, 4.0, 2.0]).reshape(1, 1, 2, 2), 40_000, 4
    if of == "variant":
        y = MaxPoolingDropout(p).apply(x, MaxPoolingDropout(p).draw(stream(passes), (1, 2, 2)), Window.of(2, 2))
    else:
        y = MaxPoolDropout2d(2, p=p).train()(x.expand(passes, -1, -1, -1))
    chances = torch.tensor([p**n, *((1 - p) * p ** (n - i) for i in range(1, n + 1))], dtype=torch.float64)

    assert chisquare(y.flatten().int().bincount(minlength=5), chances * passes).pvalue > 1e-6


@pytest.mark.parametrize("of", ["variant", "layer"])
def test_an_input_is_drawn_as_often_as_its_share_of_the_sum(of: str) -> None:
    x, passes = torch.tensor([3.0, -5.0, 1.0, 0.0, 4.0, 2.0]).reshape(1, 1, 2, 3), 40_000
    window = Window.of(2, (2, 3))
    if of == "variant":
        y = StochasticPooling().apply(x, StochasticPooling().draw(stream(passes), (1, 1, 1)), window)
    else:
        y = StochasticPool2d((2, 3)).train()(x.expand(passes, -1, -1, -1))
    counts = y.flatten().int().bincount(minlength=5)

    assert counts[0] == 0
    assert chisquare(counts[1:], torch.tensor([0.1, 0.2, 0.3, 0.4]) * passes).pvalue > 1e-6


def test_the_largest_number_there_is_draws_a_positive_input() -> None:
    """u rounds to 1 in single precision, and no input must be lost by it."""
    x = torch.tensor([0.1, 0.7, 0.3, 0.0])[None]
    drawn = StochasticPooling().apply(x, torch.ones(1, 1), Window.of(1, 4))

    assert torch.equal(drawn, torch.tensor([[0.3]]))


def test_a_window_without_a_positive_input_gives_zero() -> None:
    x, window = torch.tensor([[0.0, 0.0, -1.0, 0.0]]), Window.of(1, 4)
    variant = StochasticPooling()

    for y in (variant.apply(x, torch.tensor([[0.4]]), window), variant.mean(x, window), variant.variance(x, window)):
        assert torch.equal(y, torch.zeros(1, 1))


def test_ties_share_the_win() -> None:
    x, window, variant = torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64), Window.of(1, 3), MaxPoolingDropout(0.4)

    torch.testing.assert_close(variant.mean(x, window).item(), 2 * (0.6 + 0.6 * 0.4) + 0.6 * 0.4**2)


def test_windows_that_overlap_share_the_masks_of_their_inputs() -> None:
    x, variant = torch.tensor([[1.0, 9.0, 2.0]]), MaxPoolingDropout(0.5)
    y = variant.apply(x, variant.draw(stream(20_000), (3,)), Window.of(1, 2, 1))[:, 0]
    both, neither = (y == 9).all(1), (y != 9).all(1)

    assert (both | neither).all()
    assert abs(both.double().mean().item() - 0.5) <= SIGMAS * (0.25 / 20_000) ** 0.5


@pytest.mark.parametrize("variant", KINDS, ids=lambda each: each.name)
def test_what_is_no_number_is_not_lost_in_a_window(variant: PoolVariant) -> None:
    x, window = torch.tensor([[1.0, float("nan"), 2.0, 3.0]]), Window.of(1, 2)
    noise = torch.full((1, 2) if variant.per_window else (1, 4), 0.5)

    for y in (variant.apply(x, noise, window), variant.mean(x, window)):
        assert y.isnan().tolist() == [[True, False]]


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_trains_with_its_variants_moments_and_has_their_mean_in_eval_mode(name: str) -> None:
    layer, variant, rows = LAYERS[name](), VARIANTS_OF_LAYERS[name], 20_000
    x = positive((1, 2, 4, 4)).float()
    y = layer.train()(x.expand(rows, -1, -1, -1)).double()
    mean, variance = (each.double()[0] for each in (variant.mean(x, layer.window), variant.variance(x, layer.window)))

    assert ((y.mean(0) - mean).abs() <= SIGMAS * (variance / rows).sqrt()).all()
    assert ((y.var(0) - variance).abs() <= SIGMAS * variance_error(y)).all()
    between = torch.corrcoef(torch.stack([y[1:].flatten(1)[:, 0], y[:-1].flatten(1)[:, 0]]))[0, 1]
    assert abs(between.item()) <= SIGMAS / rows**0.5
    torch.testing.assert_close(layer.eval()(x)[0].double(), mean)


@pytest.mark.parametrize(
    ("layer", "dims"),
    [
        (MaxPoolDropout1d(2), 1), (MaxPoolDropout3d(2), 3), (StochasticPool1d(2), 1), (StochasticPool3d(2), 3),
        (MaskedMaxPool1d(2), 1),
    ],
)  # fmt: skip
def test_layers_pool_as_many_axes_as_their_names_say(layer: nn.Module, dims: int) -> None:
    x = positive((2, 3, *[4] * dims))

    for training in (True, False):
        assert layer.train(training)(x).shape == (2, 3, *[2] * dims)
    with pytest.raises(ValueError, match=rf"{type(layer).__name__} takes {dims + 2} axes and got the shape \(3, "):
        layer(x[0])


@pytest.mark.parametrize("name", ALL_LAYERS)
@pytest.mark.parametrize("training", [True, False])
def test_an_exported_pooling_layer_is_one_random_node(name: str, training: bool) -> None:
    module = nn.Sequential(ALL_LAYERS[name]()).train(training)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(module, (torch.randn(4, 3, 6, 6),))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")

    assert node.target is getattr(torch.ops.thinnet, name).default
    assert torch.Tag.nondeterministic_seeded in node.target.tags
    assert node.args[-1] is training
    assert name == "stochastic_pooling" or 0.3 in node.args


@pytest.mark.parametrize("name", ALL_LAYERS)
def test_gradients_reach_the_inputs_that_came_through(name: str) -> None:
    x = positive((2, 3, 6, 6)).requires_grad_()
    layer = ALL_LAYERS[name]().train()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)

    torch.testing.assert_close((gradient * x).sum(), y.sum())  # each result is one input, or 0
    assert 0 < (gradient > 0).sum() < x.numel()
    assert (gradient == gradient.round()).all()


@pytest.mark.parametrize("layer", [MaxPoolDropout2d, MaskedMaxPool2d])
@pytest.mark.parametrize("p", [-0.1, 1.0, float("nan")])
def test_a_pooling_layers_rate_is_checked(layer: type[nn.Module], p: float) -> None:
    with pytest.raises(InvalidPlan, match="is not a drop probability; give 0 <= p < 1"):
        layer(2, p=p)


def test_a_window_that_could_be_all_padding_is_refused() -> None:
    with pytest.raises(ValueError, match=r"padding \(2, 2\) is more than half of windows \(2, 2\) wide"):
        MaxPoolDropout2d(2, padding=2)
    with pytest.raises(ValueError, match=r"\[2, 2, 2\] gives no size for each of 2 axes; give one number, or 2"):
        StochasticPool2d([2, 2, 2])


@pytest.mark.parametrize("variant", [MaxDrop(0.4), MaxDropChannel(0.4)], ids=lambda each: each.name)
def test_max_drop_leaves_everything_but_the_maxima_alone(variant: MaxDrop) -> None:
    x = maps(variant) - 0.93  # of both signs
    y = variant.apply(x, variant.draw(stream(200), tuple(x.shape[1:])))
    changed = (y != x).any(0)

    assert changed.sum() == X.numel() == ROWS * 12
    assert (y[:, changed].unique(dim=0) != 0).any()
    assert torch.equal(y, torch.where(y == 0, torch.zeros(()), x.expand_as(y)))
    assert torch.equal(variant.variance(x) > 0, changed)
    torch.testing.assert_close(variant.mean(x), torch.where(changed, 0.6 * x, x))


@pytest.mark.parametrize("over_channels", [False, True])
def test_a_max_drop_layer_drops_the_maxima_of_each_row_by_its_own_draws(over_channels: bool) -> None:
    variant = (MaxDropChannel if over_channels else MaxDrop)(0.3)
    x, layer = maps(variant)[:1], MaxDrop2d(0.3, over_channels)
    y = layer.train()(x.expand(20_000, -1, -1, -1))
    dropped = (y == 0)[:, variant.maxima(x)[0]].double()

    assert torch.equal(y, torch.where(y == 0, torch.zeros(()), x.expand_as(y)))
    assert (y == 0).sum() == dropped.sum()
    assert ((dropped.mean(0) - 0.3).abs() <= SIGMAS * (0.21 / 20_000) ** 0.5).all()
    assert (torch.corrcoef(dropped.T) - torch.eye(12)).abs().max() <= SIGMAS / 20_000**0.5
    assert torch.equal(layer.eval()(x), x)


def test_of_equal_maxima_the_first_is_dropped() -> None:
    x = torch.ones(1, 2, 2, 2)

    assert MaxDrop(0.5).maxima(x).nonzero().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0]]
    assert MaxDropChannel(0.5).maxima(x).nonzero()[:, 1].tolist() == [0] * 4


def test_max_drop_is_for_maps_alone() -> None:
    assert not any(MaxDrop().fits(kind, shape) for kind in MaxDrop.kinds for shape in [(8,), (4, 6), (2, 3, 4, 4)])
    with pytest.raises(ValueError, match=r"MaxDrop2d takes \[B, channels, height, width\] and got the shape \(3, 4\)"):
        MaxDrop2d()(torch.ones(3, 4))
