"""Networks that learned the size of their weights' noise serve what they learned, and nothing else takes its place."""

import math

import pytest
import torch
from moments import assert_same_moments
from specimen import WIDTH, features, sequence
from test_weight_variants import noises, samples
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout import LearnedVariationalLinear, SparseVariationalLinear
from service.errors import CaptureFailed, InvalidPlan

OUT = 4


def noisy(spread: float = 2.0) -> SparseVariationalLinear:
    """Return a layer in eval mode some of whose weights are noisy enough to be pruned."""
    torch.manual_seed(3)
    layer = SparseVariationalLinear(WIDTH, OUT)
    with torch.no_grad():
        layer.log_variance.normal_(-2, spread)
    return layer.eval()


def variance_by_hand(layer: SparseVariationalLinear) -> Tensor:
    """Return σ² weight by weight, log σ² / W² within ±8."""
    weight, log_variance = layer.weight.detach(), layer.log_variance.detach()
    square = [
        [w**2 * math.exp(min(8.0, max(-8.0, s - math.log(w**2)))) for w, s in zip(*pair, strict=True)]
        for pair in zip(weight.tolist(), log_variance.tolist(), strict=True)
    ]
    return torch.tensor(square)


def kept_by_hand(layer: SparseVariationalLinear) -> Tensor:
    return layer.weight.detach() * (layer.log_variance.detach() - layer.weight.detach().square().log() <= 3)


def test_what_a_layer_learned_stands_at_its_site() -> None:
    site = Predictor.capture(noisy(), features(2)).sites[0]

    assert (site.name, site.kind, site.variant, site.p) == ("weight", "sparse weight", "sparse-variational", None)
    assert site.trained_as == "sparse-variational"


@pytest.mark.parametrize("spread", [2.0, 8.0])
def test_each_unit_is_drawn_with_the_variance_that_its_weights_learned(spread: float) -> None:
    layer, inputs = noisy(spread), features(3)
    predictor = Predictor.capture(layer, inputs)
    mean = F.linear(inputs[0], layer.weight, layer.bias)
    deviation = F.linear(inputs[0].square(), variance_by_hand(layer)).sqrt()
    expected = torch.stack([mean + deviation * z for z in noises(predictor, inputs, "trained")[0]])

    torch.testing.assert_close(samples(predictor, inputs, "trained"), expected)
    assert 0 < (kept_by_hand(layer) == 0).sum() < layer.weight.numel()


def test_switched_off_the_noisy_weights_are_pruned() -> None:
    layer, inputs = noisy(), features(3)
    predictor = Predictor.capture(layer, inputs)
    answer = predictor.predict(inputs, passes=2, quantities=["deterministic"]).outputs["output"]["deterministic"]

    torch.testing.assert_close(answer, F.linear(inputs[0], kept_by_hand(layer), layer.bias))


def joint_by_hand(layer: SparseVariationalLinear, inputs: tuple[Tensor, ...], drawn: Tensor) -> Tensor:
    deviation = variance_by_hand(layer).sqrt()
    return torch.stack([F.linear(inputs[0], layer.weight + deviation * noise, layer.bias) for noise in drawn])


def test_the_joint_form_draws_one_network_for_all_rows() -> None:
    layer, inputs = noisy(), features(3)
    predictor = Predictor.capture(layer, inputs)
    (drawn,) = noises(predictor, inputs, "sparse-variational-joint")

    assert drawn.shape[1:] == (OUT, WIDTH)
    torch.testing.assert_close(
        samples(predictor, inputs, "sparse-variational-joint"), joint_by_hand(layer, inputs, drawn)
    )


def test_the_joint_form_stands_in_where_units_have_several_positions() -> None:
    layer, inputs = noisy(), sequence(3)
    predictor = Predictor.capture(layer, inputs)
    (drawn,) = noises(predictor, inputs, "trained")

    torch.testing.assert_close(samples(predictor, inputs, "trained"), joint_by_hand(layer, inputs, drawn))
    assert any("exact masks stand in" in note for note in predictor.predict(inputs, passes=2).notes)


@pytest.mark.parametrize("variant", ["sparse-variational", "sparse-variational-joint"])
def test_a_layers_own_moments_are_those_of_its_training_mode(variant: str) -> None:
    layer, inputs = noisy(), features(1)
    answer = Predictor.capture(layer, features(2)).predict(inputs, variant=variant, passes=4000)
    with torch.no_grad():
        trained = layer.train()(inputs[0].expand(4000, -1))

    assert_same_moments(answer.mean[0], answer.variance[0], trained)


def test_only_its_own_variants_fit_a_weight_of_learned_noise_and_they_fit_no_other() -> None:
    predictor = Predictor.capture(noisy(), features(2))

    assert predictor.fitting("weight") == ("sparse-variational", "sparse-variational-joint")
    with pytest.raises(InvalidPlan, match="variant 'sparse-variational' fits none of the sites"):
        Predictor.capture(nn.Linear(WIDTH, OUT).eval(), features(2)).predict(features(2), variant="sparse-variational")


def test_a_weight_with_two_learned_variances_is_refused() -> None:
    first, second = SparseVariationalLinear(WIDTH, WIDTH), SparseVariationalLinear(WIDTH, WIDTH)
    second.weight = first.weight

    with pytest.raises(CaptureFailed, match=r"weight: its layers learned different variances; share those too"):
        Predictor.capture(nn.Sequential(first, second).eval(), features(2))


def test_layers_that_share_weight_and_noise_share_one_draw() -> None:
    torch.manual_seed(4)
    first, second = SparseVariationalLinear(WIDTH, WIDTH, bias=False), SparseVariationalLinear(WIDTH, WIDTH, bias=False)
    with torch.no_grad():
        first.log_variance.normal_(-2, 1)
    second.weight, second.log_variance = first.weight, first.log_variance
    network, inputs = nn.Sequential(first, nn.ReLU(), second).eval(), features(3)
    predictor = Predictor.capture(network, inputs)
    (drawn,) = noises(predictor, inputs, "trained")
    weights = [first.weight + variance_by_hand(first).sqrt() * noise for noise in drawn]
    expected = torch.stack([F.linear(F.linear(inputs[0], weight).relu(), weight) for weight in weights])

    torch.testing.assert_close(samples(predictor, inputs, "trained"), expected)


@pytest.mark.parametrize("per_input", [False, True])
def test_a_learned_alpha_is_served_as_its_rate(per_input: bool) -> None:
    layer = LearnedVariationalLinear(WIDTH, OUT, p=0.2, per_input=per_input)
    with torch.no_grad():
        layer.alpha_logit.fill_(0.4)
    alpha = 1 / (1 + math.exp(-0.4))
    predictor, inputs = Predictor.capture(layer.eval(), features(2)), features(1)
    site = predictor.sites[0]
    found = predictor.predict(inputs, passes=4000)
    with torch.no_grad():
        trained = layer.train()(inputs[0].expand(4000, -1))

    assert site.variant == ("variational-b" if per_input else "variational-a")
    assert site.p == pytest.approx(alpha / (1 + alpha))
    assert_same_moments(found.mean[0], found.variance[0], trained)
