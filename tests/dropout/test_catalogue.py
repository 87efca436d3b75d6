"""What the catalogue says in words is what its code does."""

import re
from collections.abc import Callable

import pytest
import squares
import torch
from bench import (
    BIAS,
    FEATURES,
    LOG_VARIANCE,
    MAPS,
    POOLED,
    SAMPLED,
    WEIGHT,
    U,
    X,
    at_rate,
    closed_forms,
    given,
    learned,
    noise_shape,
)
from laws import SHARED_AXES
from relaxed import relaxed_moments
from torch import Tensor

from service.dropout import (
    BY_NAME,
    VARIANTS,
    Alpha,
    Concrete,
    FeatureAlpha,
    Kind,
    MaxDrop,
    Spatial,
    SpatialConcrete,
    Variant,
)
from service.dropout.variant import (
    ActivationVariant,
    CellVariant,
    PairedVariant,
    PoolVariant,
    SampledProduct,
    WeightVariant,
)
from service.errors import InvalidPlan

WORDS = ("name", "equation", "sampled", "shared", "mean_form", "variance_form", "reference")
RATES = (0.0, 0.1, 0.5, 0.9)
ALPHA = 1.0507009873554805 * 1.6732632423543772

Form = Callable[[float, Tensor], Tensor]


def order_chances(p: float) -> Tensor:
    return torch.tensor([(1 - p) * p**2, (1 - p) * p, 1 - p], dtype=torch.float64)


def a_squared(p: float) -> float:
    return 1 / ((ALPHA**2 * p + 1) * (1 - p))


OF_ACTIVATIONS: dict[str, Form] = {
    "x": lambda p, x: x,
    "a q x": lambda p, x: a_squared(p) ** 0.5 * (1 - p) * x,
    "x² p / q": lambda p, x: x**2 * p / (1 - p),
    "x² b² / 3 = x² p / q": lambda p, x: x**2 * (3 * p / (1 - p)) / 3,
    "x E z / q": lambda p, x: x * relaxed_moments(p, 0.1)[0] / (1 - p),
    "x² Var z / q²": lambda p, x: x**2 * relaxed_moments(p, 0.1)[1] / (1 - p) ** 2,
    "x E z_c / q": lambda p, x: x * relaxed_moments(p, 2 / 3)[0] / (1 - p),
    "x² Var z_c / q²": lambda p, x: x**2 * relaxed_moments(p, 2 / 3)[1] / (1 - p) ** 2,
    "q x": lambda p, x: (1 - p) * x,
    "p q x²": lambda p, x: p * (1 - p) * x**2,
    "x² (q + p / 3 - q²) / q²": lambda p, x: x**2 * ((1 - p) + p / 3 - (1 - p) ** 2) / (1 - p) ** 2,
    "q x at the maximum, x elsewhere": lambda p, x: (1 - p) * x,
    "p q x² at the maximum, 0 elsewhere": lambda p, x: p * (1 - p) * x**2,
    "x² (1 - K) / K": lambda p, x: x**2 * (1 / squares.kept(p, 2, *x.shape[-2:]) - 1),
    "(1 - P) x": lambda p, x: (1 - squares.covered(2, *x.shape[-2:])) * x,
    "P (1 - P) x²": lambda p, x: squares.covered(2, *x.shape[-2:]) * (1 - squares.covered(2, *x.shape[-2:])) * x**2,
    "a² p q (x + α′)²": lambda p, x: a_squared(p) * p * (1 - p) * (x + ALPHA) ** 2,
}
OF_PAIRS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "π a": lambda u, a: a / (1 + (-0.5 * u - 1).exp()),
    "π (1 - π) a²": lambda u, a: a**2 / (1 + (-0.5 * u - 1).exp()) / (1 + (0.5 * u + 1).exp()),
    "(f₁ + f₂) / 2": lambda f1, f2: 0.5 * f1 + 0.5 * f2,
    "(f₁ - f₂)² / 12": lambda f1, f2: (f1 - f2) ** 2 / 12,
}
OF_POOLS: dict[str, Form] = {
    "Σ q pⁿ⁻ⁱ a₍ᵢ₎, a ≥ 0": lambda p, a: (a * order_chances(p)).sum(-1),
    "Σ q pⁿ⁻ⁱ a₍ᵢ₎² - (Σ q pⁿ⁻ⁱ a₍ᵢ₎)², a ≥ 0": lambda p, a: (
        (a**2 * order_chances(p)).sum(-1) - (a * order_chances(p)).sum(-1) ** 2
    ),
    "Σ a² / Σ a": lambda p, a: (a**2).sum(-1) / a.sum(-1),
    "Σ a³ / Σ a - (Σ a² / Σ a)²": lambda p, a: (a**3).sum(-1) / a.sum(-1) - ((a**2).sum(-1) / a.sum(-1)) ** 2,
    "q max a": lambda p, a: (1 - p) * a[..., -1],
    "p q (max a)²": lambda p, a: p * (1 - p) * a[..., -1] ** 2,
}
"""Of the ascending inputs [*, 3] of each window."""
OF_CELLS: dict[str, Callable[[float, Tensor, Tensor], Tensor]] = {
    "x": lambda p, new, old: new,
    "x² p / q": lambda p, new, old: new**2 * p / (1 - p),
    "g": lambda p, new, old: new,
    "g² p / q": lambda p, new, old: new**2 * p / (1 - p),
    "q c̃": lambda p, new, old: (1 - p) * new,
    "p q c̃²": lambda p, new, old: p * (1 - p) * new**2,
    "p h + q h̃": lambda p, new, old: p * old + (1 - p) * new,
    "p q (h̃ - h)²": lambda p, new, old: p * (1 - p) * (new - old) ** 2,
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
    "σ² x²": lambda p, x: x**2 @ LOG_VARIANCE.double().exp().T,
    "(1 - p t) ∘ W x + b": lambda p, x: (1 - p) * (x @ W.T) + B,
    "p q t ∘ (W x)²": lambda p, x: p * (1 - p) * (x @ W.T) ** 2,
    "(p / q) (W + c sign W)² x²": lambda p, x: (p / (1 - p)) * (x**2 @ ((W.abs() + 0.1) ** 2).T),
}
ON_ACTIVATIONS = [variant for variant in SAMPLED if issubclass(variant, ActivationVariant)]
BY_ELEMENT = [variant for variant in ON_ACTIVATIONS if not issubclass(variant, MaxDrop)]
ON_POOLS = [variant for variant in VARIANTS if issubclass(variant, PoolVariant)]
ON_PAIRS = [variant for variant in VARIANTS if issubclass(variant, PairedVariant)]
IN_CELLS = [variant for variant in VARIANTS if issubclass(variant, CellVariant)]
RATED = [variant for variant in VARIANTS if variant.rated]
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
    found = re.match(r"[A-Z][A-Za-z]+(?: & [A-Z][a-z]+| et al\.)? (\d{4})\b", variant.reference)

    assert found
    assert 2010 <= int(found[1]) <= 2030


@pytest.mark.parametrize("variant", ON_PAIRS)
def test_written_forms_of_two_tensors_are_what_the_code_computes(variant: type[PairedVariant]) -> None:
    u, x = U.double(), X.double()
    mean, variance = closed_forms(variant())

    torch.testing.assert_close(mean, OF_PAIRS[variant.mean_form](u, x))
    torch.testing.assert_close(variance, OF_PAIRS[variant.variance_form](u, x))
    torch.testing.assert_close(variant().off(u, x), mean)


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("variant", IN_CELLS)
def test_written_forms_of_a_step_are_what_the_code_computes(variant: type[CellVariant], p: float) -> None:
    mean, variance = closed_forms(variant(p=p))

    torch.testing.assert_close(mean, OF_CELLS[variant.mean_form](p, X.double(), U.double()))
    torch.testing.assert_close(variance, OF_CELLS[variant.variance_form](p, X.double(), U.double()))


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("variant", [each for each in SAMPLED if each not in (*ON_PAIRS, *ON_POOLS, *IN_CELLS)])
def test_written_forms_are_what_the_code_computes(variant: type[Variant], p: float) -> None:
    forms, x = (OF_ACTIVATIONS, given(variant)) if issubclass(variant, ActivationVariant) else (OF_WEIGHTS, FEATURES)
    mean, variance = closed_forms(at_rate(variant, p))

    torch.testing.assert_close(mean, forms[variant.mean_form](p, x.double()))
    torch.testing.assert_close(variance, forms[variant.variance_form](p, x.double()))


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize("variant", ON_POOLS)
def test_written_forms_of_windows_are_what_the_code_computes(variant: type[PoolVariant], p: float) -> None:
    windows = POOLED.double().unflatten(-1, (-1, 3)).sort(-1).values
    mean, variance = closed_forms(at_rate(variant, p))

    torch.testing.assert_close(mean, OF_POOLS[variant.mean_form](p, windows))
    torch.testing.assert_close(variance, OF_POOLS[variant.variance_form](p, windows))


@pytest.mark.parametrize("variant", BY_ELEMENT)
def test_negative_inputs_follow_the_written_forms_too(variant: type[ActivationVariant]) -> None:
    x = torch.linspace(-3, 3, 24, dtype=torch.float64)
    x = x.reshape(1, *MAPS.shape[1:]) if variant.on_images else x
    chosen = at_rate(variant, 0.3)
    assert isinstance(chosen, ActivationVariant)

    torch.testing.assert_close(chosen.mean(x), OF_ACTIVATIONS[variant.mean_form](0.3, x))
    torch.testing.assert_close(chosen.variance(x), OF_ACTIVATIONS[variant.variance_form](0.3, x))


@pytest.mark.parametrize("variant", ON_WEIGHTS)
def test_a_weight_variant_serves_a_layer_without_bias(variant: type[WeightVariant]) -> None:
    x, none = FEATURES.double(), torch.zeros(3, dtype=torch.float64)

    made, own = at_rate(variant, 0.3), [each.double() for each in learned(variant)]

    torch.testing.assert_close(made.mean(x, W, None), made.mean(x, W, none))
    torch.testing.assert_close(made.variance(x, W, None, *own), made.variance(x, W, none, *own))


def test_every_wording_of_sharing_has_a_law(variant: type[Variant]) -> None:
    assert variant.shared in SHARED_AXES


@pytest.mark.parametrize("variant", RATED)
@pytest.mark.parametrize("p", [-1e-9, 1.0, 2.0, float("nan"), float("inf")])
def test_what_is_no_drop_probability_is_refused(variant: type[Variant], p: float) -> None:
    with pytest.raises(InvalidPlan, match=f"^{variant.name}: p = .* is not a drop probability; give 0 <= p < 1$"):
        variant(p=p)


@pytest.mark.parametrize("variant", [each for each in VARIANTS if not each.rated])
def test_a_variant_without_a_rate_is_active_and_takes_none(variant: type[Variant]) -> None:
    assert variant().active
    assert "p" not in variant().parameters()
    with pytest.raises(TypeError, match="unexpected keyword argument 'p'"):
        variant(p=0.5)


@pytest.mark.parametrize("variant", RATED)
def test_p_is_a_parameter_with_a_default_that_drops_something(variant: type[Variant]) -> None:
    assert variant().parameters()["p"] == variant().p
    assert 0 < variant().p < 1
    assert variant(p=0.25).q == 0.75


@pytest.mark.parametrize("variant", SAMPLED)
def test_a_variant_fits_some_kind_of_site_and_no_other(variant: type[Variant]) -> None:
    fitting = {kind for kind in Kind if variant().fits(kind, noise_shape(variant()))}

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


@pytest.mark.parametrize(
    ("variant", "p", "mean", "variance"),
    [
        (Concrete, 0.1, 0.99869, 0.10108), (Concrete, 0.2, 0.99805, 0.22645), (Concrete, 0.5, 1.0, 0.90080),
        (SpatialConcrete, 0.1, 0.94968, 0.06780), (SpatialConcrete, 0.2, 0.93894, 0.13429),
        (SpatialConcrete, 0.5, 1.0, 0.47335),
    ],
)  # fmt: skip
def test_concrete_noise_has_moments_of_its_own_below_bernoullis(
    variant: type[Concrete], p: float, mean: float, variance: float
) -> None:
    one = torch.ones((), dtype=torch.float64)

    assert variant(p=p).mean(one).item() == pytest.approx(mean, abs=5e-6)
    assert variant(p=p).variance(one).item() == pytest.approx(variance, abs=5e-6) != p / (1 - p)


def test_concrete_noise_becomes_bernoullis_as_the_temperature_falls() -> None:
    one = torch.ones((), dtype=torch.float64)

    assert Concrete(0.3, 0.001).mean(one).item() == pytest.approx(1, abs=1e-4)
    assert Concrete(0.3, 0.001).variance(one).item() == pytest.approx(0.3 / 0.7, rel=2e-3)


@pytest.mark.parametrize("t", [0.0, -1.0, 1e-9, 1e9, float("nan")])
def test_what_is_no_temperature_is_refused(t: float) -> None:
    with pytest.raises(InvalidPlan, match=r"concrete: t = .* give 0.001 <= t <= 100"):
        Concrete(0.1, t)


def test_channel_noise_is_marked_as_such(variant: type[Variant]) -> None:
    assert variant.per_channel is (variant.shared == "all positions of a channel")
