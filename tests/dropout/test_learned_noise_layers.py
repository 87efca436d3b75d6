"""Layers that learn the size of their noise: what they do in training, in eval mode, and what their divergences are."""

import math
import warnings
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from scipy.stats import norm
from test_layers import X, assert_independent, assert_moments, rows_in_training
from torch import Tensor, nn

from service.dropout import LearnedVariationalLinear, SparseVariationalLinear
from service.errors import InvalidPlan


def noisy(bias: bool = True) -> SparseVariationalLinear:
    torch.manual_seed(1)
    layer = SparseVariationalLinear(5, 3, bias)
    with torch.no_grad():
        layer.log_variance.normal_(-1, 2)
    return layer


@pytest.mark.parametrize("bias", [False, True])
def test_in_training_each_unit_has_the_variance_that_its_weights_learned(bias: bool) -> None:
    layer = noisy(bias)
    y = rows_in_training(layer)
    mean = nn.functional.linear(X, layer.weight, layer.bias).detach().double()

    assert_moments(y, mean, layer.log_variance.detach().double().exp() @ X.double().square())
    assert_independent(y)


def test_a_fresh_layer_is_hardly_noisy_and_prunes_nothing() -> None:
    layer, x = SparseVariationalLinear(5, 3), torch.randn(4, 5)

    assert torch.equal(layer.log_variance, torch.full((3, 5), -10.0))
    assert torch.equal(layer.eval()(x), nn.functional.linear(x, layer.weight, layer.bias))
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=0, atol=0.2)


def test_in_eval_mode_weights_beyond_the_threshold_are_pruned() -> None:
    layer = SparseVariationalLinear(2, 1, bias=False).eval()
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.log_variance.copy_(torch.tensor([[2.99, 3.01]]) + math.log(0.25))

    assert layer(torch.eye(2)).flatten().tolist() == [0.5, 0.0]


def test_log_alpha_stays_within_eight_and_so_does_the_noise() -> None:
    layer = SparseVariationalLinear(2, 1, bias=False).train()
    with torch.no_grad():
        layer.weight.fill_(0.5)
        layer.log_variance.copy_(torch.tensor([[-100.0, 100.0]]))
        y = layer(torch.eye(2).repeat(20_000, 1)).reshape(20_000, 2).double()

    assert layer.log_alpha.tolist() == [[-8.0, 8.0]]
    assert_moments(y, torch.full((2,), 0.5).double(), 0.25 * torch.tensor([-8.0, 8.0]).double().exp())


@pytest.mark.parametrize("zero", ["input", "weight"])
def test_gradients_are_finite_at_zero(zero: str) -> None:
    layer = SparseVariationalLinear(5, 3).train()
    if zero == "weight":
        nn.init.zeros_(layer.weight)
    (layer(torch.zeros(2, 5) if zero == "input" else torch.ones(2, 5)).sum() + layer.kl()).backward()

    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in layer.parameters())


def divergence(alpha: float) -> float:
    """Return KL(N(1, α) ‖ log-uniform) up to the prior's constant: E log |ξ| - ½ log α, by quadrature."""
    spread = math.sqrt(alpha)
    reach = 12 * spread
    bends = sorted({1 - reach, 0.0, 1.0, 1 + reach})
    expected = sum(
        quad(lambda xi: math.log(abs(xi) + 1e-300) * norm.pdf(xi, 1, spread), a, b, limit=200)[0]
        for a, b in pairwise(bends)
    )
    return expected - 0.5 * math.log(alpha)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5, 0.9])
def test_the_divergence_of_a_learned_alpha_is_the_integrals_up_to_a_constant(alpha: float) -> None:
    """Kingma's polynomial is accurate for α ≤ 1; 0.05 from the integral at most, and the constant is one for all α."""
    one, reference = LearnedVariationalLinear(1, 1), LearnedVariationalLinear(1, 1)
    with torch.no_grad():
        one.alpha_logit.copy_(torch.logit(torch.tensor(alpha)))
        reference.alpha_logit.copy_(torch.logit(torch.tensor(0.3)))

    assert (one.kl() - reference.kl()).item() == pytest.approx(divergence(alpha) - divergence(0.3), abs=0.05)


@pytest.mark.parametrize("log_alpha", [-6.0, -2.0, 0.0, 1.0, 3.0, 6.0])
def test_the_divergence_of_a_sparse_layer_is_the_integrals(log_alpha: float) -> None:
    """Molchanov's sigmoid fits every α, and falls to 0 as α grows."""
    layer = SparseVariationalLinear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.log_variance.fill_(log_alpha)
    constant = (math.log(2) + 0.5772156649) / 2  # so that the divergence of infinite α is 0
    expected = divergence(math.exp(log_alpha)) + constant

    assert layer.kl().item() == pytest.approx(expected, abs=0.03)


def test_divergences_count_every_weight() -> None:
    assert LearnedVariationalLinear(5, 3).kl().item() == pytest.approx(15 * LearnedVariationalLinear(1, 1).kl().item())
    layer = noisy()
    each = [
        0.63576 / (1 + math.exp(-1.8732 - 1.48695 * a)) - 0.5 * math.log1p(math.exp(-a)) - 0.63576
        for a in layer.log_alpha.flatten().tolist()
    ]
    assert layer.kl().item() == pytest.approx(-sum(each), rel=1e-5)


def test_the_divergence_alone_makes_weights_noisy() -> None:
    sparse, learned = SparseVariationalLinear(4, 2), LearnedVariationalLinear(4, 2)
    nn.init.uniform_(sparse.weight, 0.01, 0.3)
    optimiser = torch.optim.Adam([sparse.log_variance, learned.alpha_logit], 0.5)
    for _ in range(60):
        optimiser.zero_grad()
        (sparse.kl() + learned.kl()).backward()
        optimiser.step()

    assert (sparse.log_alpha > 3).all()
    assert learned.alpha > 0.9


@pytest.mark.parametrize("p", [0.1, 0.4])
@pytest.mark.parametrize("per_input", [False, True])
def test_a_learned_alpha_makes_the_papers_noise(per_input: bool, p: float) -> None:
    layer = LearnedVariationalLinear(5, 3, p=p, per_input=per_input)
    y = rows_in_training(layer)
    weight = layer.weight.detach().double()

    mean = nn.functional.linear(X, layer.weight, layer.bias).detach().double()
    assert_moments(y, mean, weight.square() @ X.double().square() * p / (1 - p))
    assert bool(torch.corrcoef(y.T)[0, 1].abs() > 0.05) is per_input
    assert torch.equal(layer.eval()(X), nn.functional.linear(X, layer.weight, layer.bias))


def test_alpha_is_learned_through_the_noise() -> None:
    layer = LearnedVariationalLinear(5, 3).train()
    layer(torch.ones(8, 5)).square().sum().backward()

    assert layer.alpha_logit.grad is not None
    assert layer.alpha_logit.grad != 0


@pytest.mark.parametrize("p", [0.0, 0.5, 0.7])
def test_a_rate_that_could_not_be_learned_from_is_refused(p: float) -> None:
    with pytest.raises(InvalidPlan, match=r"is no rate to learn from; give 0 < p < 0.5"):
        LearnedVariationalLinear(5, 3, p=p)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layer", [SparseVariationalLinear, LearnedVariationalLinear])
def test_an_exported_layer_is_one_random_node(layer: type[nn.Linear], training: bool) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        program = torch.export.export(nn.Sequential(layer(5, 3)).train(training), (torch.randn(4, 5),))
    (node,) = (node for node in program.graph.nodes if node.op == "call_function")

    assert torch.Tag.nondeterministic_seeded in node.target.tags
    assert isinstance(node.args[3], torch.fx.Node)
    assert node.args[-1] is training


def test_state_dicts_add_what_is_learned_to_torchs_own() -> None:
    state: dict[str, Tensor] = nn.Linear(5, 3).state_dict()

    assert [*state, "log_variance"] == list(SparseVariationalLinear(5, 3).state_dict())
    assert [*state, "alpha_logit"] == list(LearnedVariationalLinear(5, 3).state_dict())
