"""The layers to train with do in training what their papers say, and nothing in eval mode."""

import warnings

import pytest
import torch
from laws import SIGMAS, correlation, correlation_of_pairs, variance_error
from torch import Tensor, nn

from service.dropout import DropConnectLinear, GaussianDropout, UniformDropout
from service.errors import InvalidPlan

ROWS = 40_000
RATES = (0.1, 0.5)
X = torch.tensor([0.7, -1.3, 2.0, 0.9, -0.6])
MULTIPLIERS = (GaussianDropout, UniformDropout)
LAYERS = (*MULTIPLIERS, DropConnectLinear)


def build(layer: type[nn.Module], p: float = 0.5, **options: object) -> nn.Module:
    if layer is DropConnectLinear:
        return DropConnectLinear(5, 3, p=p, **options)  # type: ignore[arg-type] # as given
    return layer(p, **options)


def rows_in_training(layer: nn.Module) -> Tensor:
    """Return what the layer in training makes of many equal rows [ROWS, …]."""
    with torch.no_grad():
        return layer.train()(X.expand(ROWS, -1)).double()


def assert_moments(y: Tensor, mean: Tensor, variance: Tensor) -> None:
    mean_error, spread_error = (variance / len(y)).sqrt(), variance_error(y)
    assert (spread_error <= 0.03 * variance).all()
    assert ((y.mean(0) - mean).abs() <= SIGMAS * mean_error).all()
    assert ((y.var(0) - variance).abs() <= SIGMAS * spread_error).all()


def assert_independent(y: Tensor) -> None:
    """Rows share nothing with the next row, and elements nothing with each other."""
    limit = SIGMAS / len(y) ** 0.5
    assert (correlation(y) - torch.eye(y.shape[1])).abs().max() <= limit
    assert correlation_of_pairs(y[1:], y[:-1]).abs().max() <= limit


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("layer", MULTIPLIERS)
def test_in_training_every_element_has_noise_of_its_own_with_the_papers_moments(
    layer: type[nn.Module], p: float
) -> None:
    y = rows_in_training(build(layer, p))

    assert_moments(y, X.double(), X.double().square() * (p / (1 - p)))
    assert_independent(y)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_in_training_every_example_has_a_weight_mask_of_its_own(p: float, sampled: bool, bias: bool) -> None:
    layer = DropConnectLinear(5, 3, bias, p, sampled)
    y = rows_in_training(layer)
    weight = layer.weight.detach().double()
    offset = layer.bias.detach().double() if bias else torch.zeros(3)

    assert_moments(
        y, weight @ X.double() + offset, (p / (1 - p)) * (weight.square() @ X.double().square() + offset.square())
    )
    assert_independent(y)


@pytest.mark.parametrize("p", RATES)
def test_dropconnect_masks_single_weights_of_an_example(p: float) -> None:
    """Under a unit input and no bias an output is one weight: dropped, or kept and scaled by 1 / q."""
    layer = DropConnectLinear(5, 3, bias=False, p=p).train()
    with torch.no_grad():
        y = layer(torch.eye(5).repeat(200, 1)).reshape(200, 5, 3)
    kept = layer.weight.detach().T / (1 - p)
    dropped = (y == 0).double()

    torch.testing.assert_close(y, torch.where(y == 0, torch.zeros(()), kept.expand_as(y)))
    assert ((dropped.mean((1, 2)) > 0) & (dropped.mean((1, 2)) < 1)).any()
    assert abs(dropped.mean().item() - p) <= SIGMAS * (p * (1 - p) / dropped.numel()) ** 0.5


def test_uniform_noise_keeps_within_its_half_width_and_reaches_it() -> None:
    noise = rows_in_training(UniformDropout(0.25)) / X

    assert 0 <= noise.min() < 1e-3
    assert 2 - 1e-3 < noise.max() <= 2.000001


@pytest.mark.parametrize("layer", MULTIPLIERS)
def test_in_eval_mode_a_multiplier_is_the_identity(layer: type[nn.Module]) -> None:
    x = torch.randn(4, 5)

    assert torch.equal(build(layer).eval()(x), x)


@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 6, 5)])
def test_in_eval_mode_dropconnect_is_the_plain_linear_layer(shape: tuple[int, ...]) -> None:
    layer, x = DropConnectLinear(5, 3), torch.randn(shape)

    assert torch.equal(layer.eval()(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer.train()(x).shape == (*shape[:-1], 3)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_rate_of_zero_changes_nothing_in_training(layer: type[nn.Module]) -> None:
    module, x = build(layer, 0.0), torch.randn(4, 5)

    torch.testing.assert_close(module.train()(x), module.eval()(x))


@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_those_of_the_network_that_was_sampled(layer: type[nn.Module]) -> None:
    """Every layer is linear in its input for given noise: y = J x + c, with the noise repeated by its seed."""
    module = build(layer).double().train()

    def forward(x: Tensor) -> Tensor:
        torch.manual_seed(3)
        return module(x)

    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    direction = torch.randn_like(x)
    y = forward(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)

    torch.testing.assert_close((gradient * direction).sum(), (forward(x + direction) - y).sum())
    assert gradient.abs().sum() > 0


def test_dropconnects_gradients_reach_the_kept_weights_and_biases_only() -> None:
    layer = DropConnectLinear(5, 3).train()
    torch.manual_seed(3)
    layer(torch.ones(1, 5)).sum().backward()

    for gradient in (layer.weight.grad, layer.bias.grad):
        assert gradient is not None
        assert set(gradient.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_an_exported_layer_is_one_node_that_holds_its_rate(layer: type[nn.Module], training: bool) -> None:
    module = nn.Sequential(build(layer, 0.3)).train(training)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(module, (torch.randn(4, 5),))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    name = {
        GaussianDropout: "gaussian_dropout",
        UniformDropout: "uniform_dropout",
        DropConnectLinear: "dropconnect_linear",
    }
    values = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))

    assert node.target is getattr(torch.ops.thinnet, name[layer]).default
    assert torch.Tag.nondeterministic_seeded in node.target.tags
    assert (values["p"], values["train"]) == (0.3, training)


@pytest.mark.parametrize("sampled", [True, False])
def test_an_exported_dropconnect_layer_tells_how_it_is_served(sampled: bool) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(build(DropConnectLinear, sampled=sampled), (torch.randn(4, 5),))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")

    assert node.args[-2] is sampled


@pytest.mark.parametrize("p", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_rate_outside_zero_to_one_is_refused(layer: type[nn.Module], p: float) -> None:
    with pytest.raises(InvalidPlan, match="is not a drop probability; give 0 <= p < 1"):
        build(layer, p)


def test_state_dicts_are_those_of_the_layers_they_replace() -> None:
    plain = nn.Linear(5, 3)
    layer = DropConnectLinear(5, 3)
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(4, 5)
    layer.train()(x)

    assert list(layer.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(mine, plain.state_dict()[name]) for name, mine in layer.state_dict().items())
    assert torch.equal(layer.eval()(x), plain(x))
    assert not GaussianDropout().state_dict()
    assert not UniformDropout().state_dict()
