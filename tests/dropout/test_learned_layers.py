"""Layers with state or eval forms of their own: what they do in training is what their papers say."""

import pytest
import torch
from laws import SIGMAS, variance_error
from torch import Tensor, nn

from service.dropout import (
    Concrete,
    ConcreteDropout,
    LayerDropPath,
    ShakeDrop,
    ShakeDropPath,
    ShakeShakeMix,
    SpatialConcrete,
    SpatialConcreteDropout,
    StandoutGate,
    StandoutLinear,
)
from service.errors import InvalidPlan

ROWS = 40_000
X = torch.tensor([0.7, -1.3, 2.0])


def assert_moments(y: Tensor, mean: Tensor, variance: Tensor) -> None:
    y = y.double()
    assert ((y.mean(0) - mean).abs() <= SIGMAS * (variance / len(y)).sqrt()).all()
    assert ((y.var(0) - variance).abs() <= SIGMAS * variance_error(y)).all()


@pytest.mark.parametrize("t", [0.1, 1.0])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_concrete_layer_trains_with_its_relaxed_noise(p: float, t: float) -> None:
    with torch.no_grad():
        y = ConcreteDropout(p, t).train()(X.expand(ROWS, -1))
    variant, x = Concrete(p, t), X.double()

    assert_moments(y, variant.mean(x), variant.variance(x))
    assert torch.corrcoef(y.T)[0, 1].abs() < SIGMAS / ROWS**0.5


def test_a_spatial_concrete_layer_has_one_draw_for_each_channel_of_each_row() -> None:
    with torch.no_grad():
        noise = SpatialConcreteDropout(0.3).train()(torch.ones(ROWS, 2, 3))
    assert torch.equal(noise, noise[:, :, :1].expand_as(noise))
    one = torch.ones(2, dtype=torch.float64)
    assert_moments(noise[..., 0], SpatialConcrete(0.3).mean(one), SpatialConcrete(0.3).variance(one))
    assert torch.corrcoef(noise[..., 0].T)[0, 1].abs() < SIGMAS / ROWS**0.5


def test_a_concrete_layers_rate_is_learned_through_its_noise_and_its_regulariser() -> None:
    layer, linear = ConcreteDropout(0.2), nn.Linear(3, 2)
    layer.train()(X).sum().backward()
    assert layer.p_logit.grad is not None
    assert layer.p_logit.grad.abs() > 0

    expected = 0.1 * (linear.weight.square().sum() + linear.bias.square().sum()) / 0.8
    p = torch.tensor(0.2)
    expected = expected + 0.5 * 3 * (p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(layer.regulariser(linear, 0.1, 0.5), expected)


def test_the_regulariser_alone_pushes_the_rate_to_a_half() -> None:
    layer = ConcreteDropout(0.1)
    linear = nn.Linear(3, 2)
    optimiser = torch.optim.Adam(layer.parameters(), 0.1)
    for _ in range(200):
        optimiser.zero_grad()
        layer.regulariser(linear, 0.0, 1.0).backward()
        optimiser.step()

    assert layer.p.item() == pytest.approx(0.5, abs=1e-2)


def test_layer_drop_drops_a_whole_batch_and_rescales_nothing() -> None:
    layer = LayerDropPath(0.3).train()
    passes = torch.stack([layer(X.expand(4, -1)) for _ in range(2000)])
    kept = passes[:, 0, 0] != 0

    assert torch.equal(passes, torch.where(kept[:, None, None], X.expand(4, -1), torch.zeros(())))
    assert abs(kept.double().mean().item() - 0.7) <= SIGMAS * (0.21 / 2000) ** 0.5


def test_shake_drop_shakes_rows_apart_but_decides_for_the_batch() -> None:
    layer = ShakeDropPath(0.4).train()
    factors = torch.stack([layer(torch.ones(3, 1))[:, 0] for _ in range(20_000)])
    kept = (factors == 1).all(1)
    one = torch.ones((), dtype=torch.float64)

    assert torch.equal(kept, (factors == 1).any(1))
    assert_moments(factors[:, 0] / 0.6, ShakeDrop(0.4).mean(one), ShakeDrop(0.4).variance(one))
    shaken = factors[~kept]
    assert torch.corrcoef(shaken.T)[0, 1].abs() < SIGMAS / len(shaken) ** 0.5
    assert -1 <= shaken.min() < -0.99 < 0.99 < shaken.max() <= 1


def test_shake_drops_gradient_has_a_factor_of_its_own_from_zero_to_one() -> None:
    layer, x = ShakeDropPath(0.9).train(), torch.ones(5000, 1, requires_grad=True)
    torch.manual_seed(1)
    y = layer(x)
    y.sum().backward()
    assert x.grad is not None
    assert not torch.equal(y, x)
    assert 0 <= x.grad.min() < 0.01 < 0.99 < x.grad.max() <= 1
    assert abs(torch.corrcoef(torch.cat([y, x.grad], 1).detach().T)[0, 1].item()) < SIGMAS / 5000**0.5


@pytest.mark.parametrize("layer", [ConcreteDropout(0.3), SpatialConcreteDropout(0.3), LayerDropPath(0.3)])
def test_in_eval_mode_it_is_the_identity(layer: nn.Module) -> None:
    x = torch.randn(4, 5, 2)

    assert torch.equal(layer.eval()(x), x)


def test_in_eval_mode_shake_drop_scales_by_its_mean() -> None:
    torch.testing.assert_close(ShakeDropPath(0.3).eval()(X), 0.7 * X)


def test_a_concrete_rate_of_zero_is_refused_as_it_could_not_be_learned_from() -> None:
    with pytest.raises(InvalidPlan, match="a rate of 0 cannot be learned from; give 0 < p < 1"):
        ConcreteDropout(0.0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.5, 1.0), (2.0, -1.0)])
def test_standout_keeps_strongly_active_units_more_and_rescales_nothing(alpha: float, beta: float) -> None:
    u = torch.linspace(-2, 2, 5)
    a = torch.ones(5)
    y = StandoutGate(alpha, beta).train()(u.expand(ROWS, -1), a.expand(ROWS, -1))
    kept = 1 / (1 + torch.exp(-(alpha * u + beta)).double())

    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert (y.mean(0).diff() > 0).all()
    assert_moments(y, kept, kept * (1 - kept))


def test_in_eval_mode_standout_has_the_mean() -> None:
    layer, x = StandoutLinear(3, 4, torch.tanh, 0.7, 0.2).eval(), torch.randn(5, 3)
    u = nn.functional.linear(x, layer.weight, layer.bias)

    torch.testing.assert_close(layer(x), torch.sigmoid(0.7 * u + 0.2) * torch.tanh(u))


def test_shake_shake_mixes_each_row_by_its_own_uniform_share() -> None:
    first, second = torch.ones(ROWS, 2), torch.zeros(ROWS, 2)
    share = ShakeShakeMix().train()(first, second)

    assert torch.equal(share[:, 0], share[:, 1])
    assert_moments(share[:, :1], torch.tensor([0.5]).double(), torch.tensor([1 / 12]).double())
    assert torch.equal(ShakeShakeMix().eval()(first, second), 0.5 * first)


def test_shake_shakes_gradients_have_a_share_of_their_own() -> None:
    first, second = (torch.ones(5000, 1, requires_grad=True) for _ in range(2))
    share = ShakeShakeMix().train()(first, second * 0)
    share.sum().backward()
    assert first.grad is not None

    assert 0 <= first.grad.min() < 0.01 < 0.99 < first.grad.max() <= 1
    assert abs(torch.corrcoef(torch.cat([share, first.grad], 1).detach().T)[0, 1].item()) < SIGMAS / 5000**0.5
