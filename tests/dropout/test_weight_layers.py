"""The layers with noisy weights do in training what their papers say, and are the plain layer in eval mode."""

import warnings

import pytest
import torch
from laws import SIGMAS, correlation
from test_layers import ROWS, X, assert_independent, assert_moments, rows_in_training
from torch import Tensor, nn

from service.dropout import DropConnectConv2d, ShakeoutLinear, TargetedLinear, VariationalLinear, WordDropoutEmbedding
from service.errors import InvalidPlan

RATES = (0.1, 0.5)
NODES = {
    VariationalLinear: "variational_linear",
    ShakeoutLinear: "shakeout_linear",
    TargetedLinear: "targeted_linear",
    WordDropoutEmbedding: "word_dropout_embedding",
}


def plain_product(layer: nn.Linear) -> Tensor:
    return (layer.weight @ X + layer.bias).detach().double()


def squares(layer: nn.Linear, c: float = 0.0) -> Tensor:
    """Return Σ (W + c sign W)² x² [out]."""
    weight = layer.weight.detach().double()
    return (weight + c * weight.sign()).square() @ X.double().square()


@pytest.mark.parametrize("p", RATES)
def test_type_a_gives_each_unit_of_each_example_noise_of_its_own(p: float) -> None:
    layer = VariationalLinear(5, 3, p=p)
    y = rows_in_training(layer)

    assert_moments(y, plain_product(layer), squares(layer) * p / (1 - p))
    assert_independent(y)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("c", [0.0, 0.4, None])
def test_noise_of_an_input_is_seen_by_all_units_of_an_example(p: float, c: float | None) -> None:
    """Shakeout at c, and variational dropout of type B."""
    layer = VariationalLinear(5, 3, p=p, per_input=True) if c is None else ShakeoutLinear(5, 3, p=p, c=c)
    y = rows_in_training(layer)
    weight = layer.weight.detach().double()
    swing = (weight + (c or 0) * weight.sign()) * X
    covariance = swing @ swing.T
    deviation = covariance.diag().sqrt()

    assert_moments(y, plain_product(layer), squares(layer, c or 0) * p / (1 - p))
    expected = covariance / torch.outer(deviation, deviation)
    assert (correlation(y) - expected).abs().max() <= 2 * SIGMAS / ROWS**0.5


@pytest.mark.parametrize("p", RATES)
def test_a_dropped_word_is_dropped_for_the_whole_batch(p: float) -> None:
    layer = WordDropoutEmbedding(2000, 3, p=p).train()
    with torch.no_grad():
        y = layer(torch.arange(2000).repeat(2, 1))
    dropped = (y[0] == 0).all(1)

    assert torch.equal(y[0], y[1])
    torch.testing.assert_close(y[0], torch.where(dropped[:, None], 0.0, layer.weight.detach() / (1 - p)))
    assert abs(dropped.double().mean().item() - p) <= SIGMAS * (p * (1 - p) / 2000) ** 0.5


@pytest.mark.parametrize("layer", [VariationalLinear(5, 3, p=0.3), ShakeoutLinear(5, 3, p=0.3, c=2.0)])
@pytest.mark.parametrize("shape", [(5,), (4, 5), (4, 6, 5)])
def test_in_eval_mode_it_is_the_plain_linear_layer(layer: nn.Linear, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)

    assert torch.equal(layer.eval()(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert layer.train()(x).shape == (*shape[:-1], 3)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("padding", [None, 2])
def test_in_eval_mode_a_table_is_looked_up_as_it_is(padding: int | None) -> None:
    layer = WordDropoutEmbedding(7, 3, padding, p=0.3).eval()
    words = torch.arange(7)

    assert torch.equal(layer(words), layer.weight)
    layer(words).sum().backward()
    assert layer.weight.grad is not None
    assert (layer.weight.grad == 0).all(1).tolist() == [word == padding for word in range(7)]


@pytest.mark.parametrize("make", [VariationalLinear, ShakeoutLinear])
def test_gradients_are_finite_where_an_example_is_zero(make: type[nn.Module]) -> None:
    layer = make(5, 3).train()
    layer(torch.zeros(2, 5)).sum().backward()

    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", NODES)
def test_an_exported_layer_is_one_random_node_that_holds_its_rate(layer: type[nn.Module], training: bool) -> None:
    module = nn.Sequential(layer(5, 3, p=0.3)).train(training)
    x = torch.randint(0, 5, (4, 2)) if layer is WordDropoutEmbedding else torch.randn(4, 5)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(module, (x,))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")
    values = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))

    assert node.target is getattr(torch.ops.thinnet, NODES[layer]).default
    assert torch.Tag.nondeterministic_seeded in node.target.tags
    assert (values["p"], values["train"]) == (0.3, training)


def test_what_a_layer_cannot_be_trained_with_is_refused() -> None:
    with pytest.raises(InvalidPlan, match=r"makes α = p / q larger than 1; give p <= 0.5"):
        VariationalLinear(5, 3, p=0.6)
    for c in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InvalidPlan, match="is no strength; give a number c >= 0"):
            ShakeoutLinear(5, 3, c=c)
    for layer in NODES:
        with pytest.raises(InvalidPlan, match="is not a drop probability; give 0 <= p < 1"):
            layer(5, 3, p=1.0)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("units", [False, True])
def test_targets_alone_are_dropped_in_training_and_all_of_them_in_eval_mode(units: bool, p: float) -> None:
    layer = TargetedLinear(4, 6, bias=False, p=p, gamma=0.5, units=units).train()
    with torch.no_grad():
        sampled = torch.stack([layer(torch.eye(4)).T for _ in range(1000)])
        pruned = layer.eval()(torch.eye(4)).T
    targets = pruned == 0
    dropped = (sampled == 0).double().mean(0)
    groups = targets.all(1) if units else targets

    assert targets.sum() == 12
    assert not units or groups.sum() == 3
    assert layer.weight[targets].abs().mean() < layer.weight[~targets].abs().mean()
    torch.testing.assert_close(pruned, layer.weight.detach() * ~targets)
    assert (dropped[~targets] == 0).all()
    assert (dropped[targets] - p).abs().max() <= SIGMAS * (p * (1 - p) / 1000) ** 0.5
    kept = layer.weight.detach().expand_as(sampled)
    torch.testing.assert_close(sampled, torch.where(sampled == 0, 0.0, kept))
    same = (sampled[:, groups] == 0).all(-1) == (sampled[:, groups] == 0).any(-1) if units else torch.ones(1)
    assert bool(same.all())


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.1, float("nan")])
def test_what_is_no_fraction_to_target_is_refused(gamma: float) -> None:
    with pytest.raises(InvalidPlan, match="is no fraction to target; give 0 < gamma <= 1"):
        TargetedLinear(5, 3, gamma=gamma)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("p", RATES)
def test_a_convolution_masks_its_weights_and_biases_for_each_example(p: float, groups: int) -> None:
    """On one window a convolution is a linear layer."""
    layer = DropConnectConv2d(2, 4, 2, groups=groups, p=p).train()
    x = torch.randn(1, 2, 2, 2)
    with torch.no_grad():
        y = layer(x.expand(ROWS, -1, -1, -1)).flatten(1).double()
        mean = layer.eval()(x).flatten().double()
        squares = nn.functional.conv2d(x.square(), layer.weight.square(), layer.bias.square(), groups=groups)

    assert_moments(y, mean, squares.flatten().double() * p / (1 - p))
    assert_independent(y)


def test_a_convolution_in_eval_mode_or_at_rate_zero_is_the_plain_one() -> None:
    options = {"stride": 2, "padding": (1, 2), "dilation": 2, "groups": 2}
    layer, off = DropConnectConv2d(2, 4, 3, **options, p=0.4), DropConnectConv2d(2, 4, 3, **options, p=0.0)
    plain = nn.Conv2d(2, 4, 3, **options)
    for each in (layer, off):
        each.load_state_dict(plain.state_dict())
    x = torch.randn(3, 2, 9, 8)

    assert torch.equal(layer.eval()(x), plain(x))
    torch.testing.assert_close(off.train()(x), plain(x))
    with pytest.raises(InvalidPlan, match="padding = 'same' is a word; give it as numbers"):
        DropConnectConv2d(1, 1, 3, padding="same")  # type: ignore[arg-type] # that is the test
