"""What the catalogue says in words is what its code does."""

from collections.abc import Callable

import pytest
import torch
from bench import BIAS, FEATURES, WEIGHT, X, closed_forms
from laws import SHARED_AXES
from torch import Tensor

from service.dropout import BY_NAME, VARIANTS, Alpha, FeatureAlpha, Kind, Spatial, Variant
from service.dropout.variant import ActivationVariant, SampledProduct, WeightVariant
from service.errors import InvalidPlan

WORDS = ("name", "equation", "sampled", "shared", "mean_form", "variance_form", "reference")
RATES = (0.0, 0.1, 0.5, 0.9)
ALPHA = 1.0507009873554805 * 1.6732632423543772

Form = Callable[[float, Tensor], Tensor]


def a_squared(p: float) -> float:
    return 1 / ((ALPHA**2 * p + 1) * (1 - p))


OF_ACTIVATIONS: dict[str, Form] = {
    "x": lambda p, x: x,
    "a q x": lambda p, x: a_squared(p) ** 0.5 * (1 - p) * x,
    "x² p / q": lambda p, x: x**2 * p / (1 - p),
    "x² b² / 3 = x² p / q": lambda p, x: x**2 * (3 * p / (1 - p)) / 3,
    "a² p q (x + α′)²": lambda p, x: a_squared(p) * p * (1 - p) * (x + ALPHA) ** 2,
}
W, B = WEIGHT.double(), BIAS.double()
TARGETS = torch.zeros_like(W).scatter(1, torch.tensor([[2, 4], [0, 4], [1, 3]]), 1.0)
"""The bench's two smallest weights of each unit; all of its units are targets."""
OF_WEIGHTS: dict[str, Form] = {
    "W x + b": lambda p, x: x @ W.T + B,
    "(p / q) (W² x² + b²)": lambda p, x: (p / (1 - p)) * (x**2 @ (W**2).T + B**2),
    "(p / q) W² x²": lambda p, x: (p / (1 - p)) * (x**2 @ (W**2).T),
    "(W ∘ (1 - p t)) x + b": lambda p, x: x @ (W * (1 - p * TARGETS)).T + B,
    "p q (t ∘ W²) x²": lambda p, x: p * (1 - p) * (x**2 @ (W**2 * TARGETS).T),
    "(1 - p t) ∘ W x + b": lambda p, x: (1 - p) * (x @ W.T) + B,
    "p q t ∘ (W x)²": lambda p, x: p * (1 - p) * (x @ W.T) ** 2,
    "(p / q) (W + c sign W)² x²": lambda p, x: (p / (1 - p)) * (x**2 @ ((W.abs() + 0.1) ** 2).T),
}
ON_ACTIVATIONS = [variant for variant in VARIANTS if issubclass(variant, ActivationVariant)]
ON_WEIGHTS = [variant for variant in VARIANTS if issubclass(variant, WeightVariant)]


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant.name)
def variant(request: pytest.FixtureRequest) -> type[Variant]:
    found: type[Variant] = request.param
    return found


@pytest.mark.parametrize("word", WORDS)
def test_every_variant_explains_itself(variant: type[Variant], word: str) -> None:
    said = getattr(variant, word)

    assert said == said.strip() != ""
    assert "\n" not in said
    assert variant.__doc__ is not None


def test_names_are_unique_and_fit_an_address() -> None:
    assert len(BY_NAME) == len(VARIANTS)
    assert all(name.replace("-", "").isalpha() and name.islower() for name in BY_NAME)


def test_references_name_authors_and_a_year(variant: type[Variant]) -> None:
    authors, year = variant.reference.split(" et al. ")

    assert authors.isalpha()
    assert 2010 <= int(year[:4]) <= 2030


@pytest.mark.parametrize("p", RATES)
def test_written_forms_are_what_the_code_computes(variant: type[Variant], p: float) -> None:
    forms, x = (OF_ACTIVATIONS, X) if issubclass(variant, ActivationVariant) else (OF_WEIGHTS, FEATURES)
    mean, variance = closed_forms(variant(p=p))

    torch.testing.assert_close(mean, forms[variant.mean_form](p, x.double()))
    torch.testing.assert_close(variance, forms[variant.variance_form](p, x.double()))


@pytest.mark.parametrize("variant", ON_ACTIVATIONS)
def test_negative_inputs_follow_the_written_forms_too(variant: type[ActivationVariant]) -> None:
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)

    torch.testing.assert_close(variant(p=0.3).mean(x), OF_ACTIVATIONS[variant.mean_form](0.3, x))
    torch.testing.assert_close(variant(p=0.3).variance(x), OF_ACTIVATIONS[variant.variance_form](0.3, x))


@pytest.mark.parametrize("variant", ON_WEIGHTS)
def test_a_weight_variant_serves_a_layer_without_bias(variant: type[WeightVariant]) -> None:
    x, none = FEATURES.double(), torch.zeros(3, dtype=torch.float64)

    for method in (variant(p=0.3).mean, variant(p=0.3).variance):
        torch.testing.assert_close(method(x, W, None), method(x, W, none))


def test_every_wording_of_sharing_has_a_law(variant: type[Variant]) -> None:
    assert variant.shared in SHARED_AXES


@pytest.mark.parametrize("p", [-1e-9, 1.0, 2.0, float("nan"), float("inf")])
def test_what_is_no_drop_probability_is_refused(variant: type[Variant], p: float) -> None:
    with pytest.raises(InvalidPlan, match=f"^{variant.name}: p = .* is not a drop probability; give 0 <= p < 1$"):
        variant(p=p)


def test_p_is_a_parameter_with_a_default_that_drops_something(variant: type[Variant]) -> None:
    assert variant().parameters()["p"] == variant().p
    assert 0 < variant().p < 1
    assert variant(p=0.25).q == 0.75


def test_a_variant_fits_some_kind_of_site_and_no_other(variant: type[Variant]) -> None:
    fitting = {kind for kind in Kind if variant().fits(kind, (3, 4))}

    assert fitting == variant.kinds != frozenset()


@pytest.mark.parametrize("channelled", [Spatial, FeatureAlpha])
def test_channels_without_positions_are_no_place_for_channel_noise(channelled: type[Variant]) -> None:
    assert not channelled().fits(Kind.ACTIVATION, (8,))
    assert channelled().fits(Kind.ACTIVATION, (8, 5))


def test_only_sampled_products_lose_the_covariance_of_one_network(variant: type[Variant]) -> None:
    assert variant.joint is not issubclass(variant, SampledProduct)


@pytest.mark.parametrize("saturating", [Alpha, FeatureAlpha])
@pytest.mark.parametrize("p", [0.05, 0.1, 0.5])
def test_alpha_dropout_keeps_the_moments_of_a_standard_normal_input(saturating: type[Alpha], p: float) -> None:
    """Over x ~ N(0, 1): E a q x = 0, and E Var + Var E = a² p q (1 + α′²) + a² q² = 1."""
    variant = saturating(p=p)
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000)

    assert abs(variant.mean(x).mean().item()) < 1e-9
    assert abs((variant.variance(x).mean() + variant.mean(x).square().mean()).item() - 1) < 1e-3


@pytest.mark.parametrize(("p", "factor"), [(0.05, 0.907), (0.1, 0.829), (0.5, 0.443)])
def test_alpha_dropouts_mean_is_not_its_input(p: float, factor: float) -> None:
    assert Alpha(p=p).mean(torch.ones(())).item() == pytest.approx(factor, abs=5e-4)


def test_channel_noise_is_marked_as_such(variant: type[Variant]) -> None:
    assert variant.per_channel is (variant.shared == "all positions of a channel")
