"""A variant at work on a fixed input; what the laws, the transcriptions and the mutants look at."""

from functools import singledispatch

import torch
from torch import Tensor

from service.dropout import VARIANTS, Stream, Variant
from service.dropout.variant import ActivationVariant, MaskedWeight, PairedVariant, SampledProduct, WeightVariant

SAMPLED = tuple(variant for variant in VARIANTS if variant().fixed_passes is None)
"""The variants that draw; `test_masksembles` has the laws of fixed masks."""
PASSES = 60_000
CHANNELS, POSITIONS = 3, 4
SHAPE = (CHANNELS, POSITIONS)
OUT, IN = 3, 5
ROWS = 3

# Everything is positive, so that shared noise shows as correlation +1, and no two values are equal.
X = 0.5 + torch.arange(ROWS * CHANNELS * POSITIONS).reshape(ROWS, *SHAPE) * 0.05
U = 0.8 * X - 0.7  # the other tensor of a pair: of both signs, and always below X
FEATURES = 0.6 + torch.arange(ROWS * IN).reshape(ROWS, IN) * 0.11
WEIGHT = torch.tensor([[0.9, -1.1, 0.7, 1.3, -0.8], [-0.5, 1.2, 1.0, -0.7, 0.6], [1.4, 0.8, -0.9, 0.5, 1.1]])
BIAS = torch.tensor([1.5, 2.2, 1.8])


def at_rate(variant: type[Variant], p: float) -> Variant:
    """Return the variant at a rate, or as it is by default where it has none."""
    return variant(p=p) if variant.rated else variant()


def stream(passes: int = PASSES, rows: range | None = None, *, seed: int = 0, first: int = 0) -> Stream:
    return Stream(seed, "layer.dropout", first, passes, rows)


def noise_shape(variant: Variant) -> tuple[int, ...]:
    """Return the per-row shape that the engine gives to `draw`."""
    return (OUT, IN + 1) if isinstance(variant, WeightVariant) else SHAPE


def draw(variant: Variant, numbers: Stream) -> Tensor:
    return variant.draw(numbers, noise_shape(variant))


def outputs(variant: Variant, numbers: Stream) -> Tensor:
    """Return the passes [S, ROWS, …] of the variant on its fixed input."""
    return act(variant, draw(variant, numbers)).double()


@singledispatch
def act(variant: Variant, noise: Tensor) -> Tensor:
    """Return what the variant makes of its fixed input under this noise [S, R, …]."""
    raise NotImplementedError(type(variant))


@act.register
def _(variant: ActivationVariant, noise: Tensor) -> Tensor:
    return variant.apply(X, noise).expand(len(noise), *X.shape)


@act.register
def _(variant: PairedVariant, noise: Tensor) -> Tensor:
    return variant.apply(U, X, noise).expand(len(noise), *X.shape)


@act.register
def _(variant: MaskedWeight, noise: Tensor) -> Tensor:
    weight, bias = variant.apply(WEIGHT, noise[..., :IN]), variant.apply(BIAS, noise[..., IN])
    return (weight * FEATURES[:, None, :]).sum(-1) + bias


@act.register
def _(variant: SampledProduct, noise: Tensor) -> Tensor:
    return variant.apply(*variant.moments(FEATURES, WEIGHT, BIAS), noise)


def closed_forms(variant: Variant) -> tuple[Tensor, Tensor]:
    """Return the variant's own mean and variance on its fixed input, each [ROWS, …] in float64."""
    if isinstance(variant, ActivationVariant):
        return variant.mean(X.double()), variant.variance(X.double())
    if isinstance(variant, PairedVariant):
        return variant.mean(U.double(), X.double()), variant.variance(U.double(), X.double())
    assert isinstance(variant, WeightVariant)
    given = FEATURES.double(), WEIGHT.double(), BIAS.double()
    return variant.mean(*given), variant.variance(*given)


def masked_row_covariance(p: float) -> Tensor:
    """Return Cov(u of row b, u of row c) [ROWS, ROWS, OUT] under one shared mask: (p / q)(Σ W² x x′ + b²)."""
    weight, features = WEIGHT.double(), FEATURES.double()
    products = torch.einsum("oi,bi,ci->bco", weight.square(), features, features)
    return (products + BIAS.double().square()) * (p / (1 - p))


def gated_row_covariance() -> Tensor:
    """Return Cov(m a of row b, m a of row c) [ROWS, ROWS, elements] of standout under one v: (min π - π π′) a a′."""
    kept, a = (0.5 * U.double() + 1).sigmoid().flatten(1), X.double().flatten(1)
    both = torch.minimum(kept[:, None], kept[None, :]) - kept[:, None] * kept[None, :]
    return both * a[:, None] * a[None, :]
