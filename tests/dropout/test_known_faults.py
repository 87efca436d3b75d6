"""Faults that popular implementations have had, each as a promise that thinnet has it not, through the predictor."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout import (
    DropConnectLinear,
    GaussianDropout,
    StandoutGate,
    TargetedLinear,
    VariationalLinear,
    WeightDropLSTM,
    WordDropoutEmbedding,
)

PASSES = 4000


def passes(module: nn.Module, x: Tensor, **asked: object) -> Tensor:
    """Return the passes of the one output [B, S, …]."""
    predictor = Predictor.capture(module.eval(), x.repeat(2, *[1] * (x.dim() - 1)))
    found = predictor.predict(x, passes=PASSES, quantities=["samples"], **asked)  # type: ignore[arg-type] # a question
    return found.outputs["output"]["samples"].double()


@pytest.mark.parametrize("sampled", [False, True])
def test_dropconnect_does_not_forget_the_noise_of_the_bias(sampled: bool) -> None:
    """The authors' own inference leaves b² out, so a unit whose inputs are 0 would have the variance 0."""
    layer = DropConnectLinear(3, 2, p=0.3, sampled=sampled)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([2.0, -1.0]))
    variance = passes(layer, torch.zeros(1, 3))[0].var(0)

    torch.testing.assert_close(variance, 0.3 / 0.7 * torch.tensor([4.0, 1.0]).double(), rtol=0.12, atol=0)


def test_the_spread_of_gaussian_noise_is_the_root_of_its_variance() -> None:
    """A standard deviation of α = p / q instead of √α would be 1 / 9 here, not 1 / 3."""
    for served in (passes(nn.Sequential(GaussianDropout(0.1)), torch.ones(1, 2)), trained(GaussianDropout(0.1))):
        torch.testing.assert_close(served.std(-2).flatten(), torch.full((2,), 1 / 3).double(), rtol=0.06, atol=0)


def trained(layer: nn.Module) -> Tensor:
    with torch.no_grad():
        return layer.train()(torch.ones(PASSES, 2)).double()


@pytest.mark.parametrize("per_input", [False, True])
def test_variational_noise_is_around_one_and_not_around_nothing(per_input: bool) -> None:
    """Noise without its mean of 1 leaves the bias alone of the layer."""
    layer = VariationalLinear(3, 2, bias=False, p=0.2, per_input=per_input)
    nn.init.ones_(layer.weight)

    torch.testing.assert_close(
        passes(layer, torch.ones(1, 3))[0].mean(0), torch.full((2,), 3.0).double(), rtol=0.05, atol=0
    )


@pytest.mark.parametrize("drop", [nn.Dropout(0.1), nn.Dropout1d(0.1)])
def test_p_is_the_rate_of_dropping_and_not_of_keeping(drop: nn.Module) -> None:
    dropped = (passes(nn.Sequential(drop), torch.ones(1, 5, 4)) == 0).double().mean().item()

    assert dropped == pytest.approx(0.1, abs=0.03)


def test_a_dropped_word_is_rare_at_a_small_rate() -> None:
    embedding = WordDropoutEmbedding(9, 3, p=0.1)
    dropped = (passes(embedding, torch.arange(4)[None]) == 0).all(-1).double().mean().item()

    assert dropped == pytest.approx(0.1, abs=0.03)


def test_serving_and_training_an_awd_lstm_destroy_no_weights() -> None:
    """Others mask W_hh in place, so that what one pass drops is lost to all that follow."""
    layer = WeightDropLSTM(3, 4, batch_first=True, p=0.5)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(2, 6, 3)
    for _ in range(3):
        layer.train()(x)
    Predictor.capture(Final(layer), x).predict(x, passes=50)

    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


class Final(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0][:, -1]


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = StandoutGate(alpha=1.0, beta=0.0)

    def forward(self, u: Tensor) -> Tensor:
        return self.gate(u, torch.ones_like(u))


def test_standout_keeps_what_is_strongly_active() -> None:
    """With the keep probability inverted, u = 4 would be kept in 2 % of the passes."""
    kept = passes(Gate(), torch.tensor([[4.0, -4.0]]))[0].mean(0)

    torch.testing.assert_close(kept, torch.tensor([4.0, -4.0]).double().sigmoid(), rtol=0, atol=0.02)


def test_batch_norm_neither_learns_nor_sees_the_batch_while_predicting() -> None:
    """Others switch the whole model to training mode, and never back."""
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)).eval()
    before, x = copy.deepcopy(module.state_dict()), 5 + torch.randn(4, 3)
    predictor = Predictor.capture(module, x)
    together = predictor.predict(x, passes=20).mean

    torch.testing.assert_close(predictor.predict(x[:1], passes=20).mean, together[:1])
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not any(child.training for child in module.modules())


class Functional(nn.Module):
    """Dropout that no module shows: a function's, and attention's."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.a, self.attends = nn.Linear(3, 3), attends

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.attends:
            return F.scaled_dot_product_attention(h, h, h, dropout_p=0.3 if self.training else 0.0)
        return F.dropout(h, 0.3, self.training)


@pytest.mark.parametrize("attends", [False, True])
def test_dropout_that_is_no_module_is_not_missed(attends: bool) -> None:
    assert passes(Functional(attends), torch.randn(1, 4, 3)).var(1).min() > 0


@pytest.mark.parametrize("layer", [nn.Linear, TargetedLinear, DropConnectLinear])
def test_weights_are_masked_as_they_were_trained_and_not_made_anew(layer: type[nn.Linear]) -> None:
    """Others replace a layer by a fresh one; here every pass's weights are the trained ones, or 0."""
    network = layer(4, 3, bias=False)
    kept = passes(network, torch.eye(4), variant="dropconnect", p=0.5) / 2
    plain = network.eval()(torch.eye(4)).detach().double()[:, None].expand_as(kept)

    torch.testing.assert_close(kept, torch.where(kept == 0, 0.0, plain))


def test_calls_with_other_seeds_and_sites_of_one_shape_have_noise_of_their_own() -> None:
    """Others seed a global generator with 0 on every call, so that all calls and layers drop the same units."""
    module, x = nn.Sequential(nn.Dropout(0.5), nn.Identity(), nn.Dropout(0.5)), torch.ones(1, 64)
    either = passes(module, x)[0]
    assert ((either != 0).double().mean()).item() == pytest.approx(0.25, abs=0.02)
    one, other = (passes(nn.Sequential(nn.Dropout(0.5)), x, seed=seed)[0].flatten() for seed in (1, 2))
    assert abs(torch.corrcoef(torch.stack([one, other]))[0, 1].item()) < 5 / len(one) ** 0.5


def test_rows_of_a_table_have_dropconnect_masks_of_their_own_where_they_are_asked_for() -> None:
    """Others have one mask for a whole batch and no other way."""
    x = torch.ones(2, 5)
    first, second = passes(DropConnectLinear(5, 1, p=0.5), x, scope="row")[..., 0]

    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1].item()) < 5 / PASSES**0.5
