"""A variant at work on a fixed input; what the laws, the transcriptions and the mutants look at."""

from dataclasses import replace
from functools import lru_cache, singledispatch
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.dropout import VARIANTS, MaxDrop, Shakeout, Stream, TargetedUnits, TargetedWeights, Variant
from service.dropout.noise import Key
from service.dropout.targeted_weights import targeted_weights
from service.dropout.variant import (
    ActivationVariant,
    CellVariant,
    MaskedWeight,
    PairedVariant,
    PoolVariant,
    SampledProduct,
    WeightVariant,
)
from service.dropout.windows import Window

SAMPLED = tuple(variant for variant in VARIANTS if variant().fixed_passes is None)
"""The variants that draw; `test_masksembles` has the laws of fixed masks."""
PASSES = 60_000
STREAMS_KEPT = 12
CHANNELS, POSITIONS = 3, 4
SHAPE = (CHANNELS, POSITIONS)
OUT, IN = 3, 5
ROWS = 3

# Everything is positive, so that shared noise shows as correlation +1, and no two values are equal.
X = 0.5 + torch.arange(ROWS * CHANNELS * POSITIONS).reshape(ROWS, *SHAPE) * 0.05
MAPS = 0.5 + torch.arange(ROWS * 24).reshape(ROWS, 2, 3, 4) * 0.02
U = 0.8 * X - 0.7  # the other tensor of a pair: of both signs, and always below X
WINDOW = Window.of(1, 3)
POOLED = (X[..., None] * torch.tensor([0.3, 1.0, 0.6])).flatten(-2)  # windows whose largest is X, alike in all rows
FEATURES = 0.6 + torch.arange(ROWS * IN).reshape(ROWS, IN) * 0.11
WEIGHT = torch.tensor([[0.9, -1.1, 0.7, 1.3, -0.8], [-0.5, 1.2, 1.0, -0.7, 0.6], [1.4, 0.8, -0.9, 0.5, 1.1]])
BIAS = torch.tensor([1.5, 2.2, 1.8])
LOG_VARIANCE = torch.tensor([[-1.0, 0.3, -0.4, 0.1, 2.9], [1.9, -0.2, 0.5, -1.2, 0.2], [-0.6, 0.4, 0.0, 1.8, -0.9]])
"""What a layer that learns the noise of weights learned; in eval mode it prunes one weight of each unit."""


OPTIONS: dict[str, dict[str, float]] = {"dropblock": {"block_size": 2.0}, "cutout": {"size": 2.0}}
"""Parameters by variant, where the defaults would leave nothing to see on the bench's small inputs."""


def at_rate(variant: type[Variant], p: float) -> Variant:
    """Return the variant at a rate, or without one where it has none."""
    options = OPTIONS.get(variant.name, {})
    return variant(p=p, **options) if variant.rated else variant(**options)  # type: ignore[arg-type] # its own fields


def given(variant: Variant | type[Variant]) -> Tensor:
    """Return the activations that the bench looks at: images where a variant acts on all of them, and nothing else."""
    kind = variant if isinstance(variant, type) else type(variant)
    return MAPS if kind.on_images and not issubclass(kind, MaxDrop) else X


class Remembered(Stream):
    """A stream whose bits are drawn once for all that ask for the same; variants make their own numbers of them."""

    @lru_cache(maxsize=STREAMS_KEPT)  # noqa: B019 # streams are small, and few are kept
    def _raw(self, key: Key, count: int, width: int, lane: int = 0) -> NDArray[np.uint8]:
        bits = super()._raw(key, count, width, lane)
        bits.flags.writeable = False
        return bits


def stream(passes: int = PASSES, rows: range | None = None, *, seed: int = 0, first: int = 0) -> Stream:
    """Return the bench's numbers; only where there are many are they remembered, so that few are drawn each time."""
    kind = Remembered if passes == PASSES else Stream
    return kind(seed, "layer.dropout", first, passes, rows)


def noise_shape(variant: Variant) -> tuple[int, ...]:
    """Return the per-row shape that the engine gives to `draw`."""
    if isinstance(variant, MaskedWeight) and not variant.masks_bias:
        return (OUT, IN)
    if isinstance(variant, MaxDrop):
        return tuple(maps(variant).shape[1:])
    if isinstance(variant, PoolVariant) and not variant.per_window:
        return tuple(POOLED.shape[1:])
    if isinstance(variant, CellVariant):
        return (POSITIONS, 1, 4, CHANNELS, CHANNELS)
    return (OUT, IN + 1) if isinstance(variant, WeightVariant) else tuple(given(variant).shape[1:])


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
    x = given(variant)
    return variant.apply(x, noise).expand(len(noise), *x.shape)


@act.register
def _(variant: MaxDrop, noise: Tensor) -> Tensor:
    return maxima_of(variant, variant.apply(maps(variant), noise))


@act.register
def _(variant: PoolVariant, noise: Tensor) -> Tensor:
    return variant.apply(POOLED, noise, WINDOW)


@act.register
def _(variant: PairedVariant, noise: Tensor) -> Tensor:
    return variant.apply(U, X, noise).expand(len(noise), *X.shape)


@act.register
def _(variant: MaskedWeight, noise: Tensor) -> Tensor:
    noise = noise.expand(*noise.shape[:-1], IN) if isinstance(variant, TargetedUnits) else noise
    weight = all_targets(variant).apply(WEIGHT, noise[..., :IN], *learned(variant))
    bias = variant.apply(BIAS, noise[..., IN]) if variant.masks_bias else BIAS
    return (weight * FEATURES[:, None, :]).sum(-1) + bias


@act.register
def _(variant: SampledProduct, noise: Tensor) -> Tensor:
    return variant.apply(*variant.moments(FEATURES, WEIGHT, BIAS, *learned(variant)), noise)


@act.register
def _(variant: CellVariant, noise: Tensor) -> Tensor:
    """Act at the variant's first place on given values of CHANNELS units at POSITIONS steps."""
    own = noise.split(variant.widths(noise_shape(variant)), -1)[0].squeeze(3).mT
    return variant.apply(X, U, own).expand(len(noise), *X.shape)


def closed_forms(variant: Variant) -> tuple[Tensor, Tensor]:
    """Return the variant's own mean and variance on its fixed input, each [ROWS, …] in float64."""
    if isinstance(variant, MaxDrop):
        x = maps(variant).double()
        return maxima_of(variant, variant.mean(x)), maxima_of(variant, variant.variance(x))
    if isinstance(variant, PoolVariant):
        return variant.mean(POOLED.double(), WINDOW), variant.variance(POOLED.double(), WINDOW)
    if isinstance(variant, ActivationVariant):
        x = given(variant).double()
        return variant.mean(x), variant.variance(x)
    if isinstance(variant, PairedVariant):
        return variant.mean(U.double(), X.double()), variant.variance(U.double(), X.double())
    if isinstance(variant, CellVariant):
        return variant.mean(X.double(), U.double()), variant.variance(X.double(), U.double())
    assert isinstance(variant, WeightVariant)
    layer = FEATURES.double(), WEIGHT.double(), BIAS.double()
    variant = all_targets(variant)
    return variant.mean(*layer), variant.variance(*layer, *(each.double() for each in learned(variant)))


def learned(variant: WeightVariant | type[WeightVariant]) -> tuple[Tensor, ...]:
    """Return the operands that the variant's layer learned besides weight and bias."""
    return (LOG_VARIANCE,) if variant.learned else ()


def maps(variant: MaxDrop) -> Tensor:
    """Return [ROWS, 12, 2, 3], or over channels [ROWS, 6, 3, 4], in which X are the maxima."""
    values = X.flatten(1)[..., None] * torch.linspace(0.2, 0.9, 6)
    values[:, torch.arange(12), torch.arange(12) % 6] = X.flatten(1)
    return values.mT.reshape(ROWS, 6, *SHAPE) if variant.over_channels else values.unflatten(-1, (2, 3))


def maxima_of(variant: MaxDrop, y: Tensor) -> Tensor:
    """Return what [*, ROWS, …] holds at the maxima of `maps`, as [*, ROWS, *SHAPE]."""
    values = y.flatten(-2).mT if variant.over_channels else y.flatten(-2)
    return values[..., torch.arange(12), torch.arange(12) % 6].unflatten(-1, SHAPE)


def gated_row_covariance() -> Tensor:
    """Return Cov(m a of row b, m a of row c) [ROWS, ROWS, elements] of standout under one v: (min π - π π′) a a′."""
    kept, a = (0.5 * U.double() + 1).sigmoid().flatten(1), X.double().flatten(1)
    both = torch.minimum(kept[:, None], kept[None, :]) - kept[:, None] * kept[None, :]
    return both * a[:, None] * a[None, :]


def all_targets(variant: Any) -> Any:
    """Let targeted dropout of units take aim at all of the bench's few, so that every one varies."""
    return replace(variant, gamma=1.0) if isinstance(variant, TargetedUnits) else variant


def masked_covariance(variant: MaskedWeight) -> Tensor:
    """Return Cov(u_o of row b, u_k of row c) [ROWS, ROWS, OUT, OUT] under one shared network.

    One draw for each input: (p / q) Σ_j D_oj D_kj x_j x′_j; one for each weight: its diagonal, and b² if masked.
    """
    swing, features = swings(variant), FEATURES.double()
    if variant.shared.startswith("all units"):
        return torch.einsum("oj,kj,bj,cj->bcok", swing, swing, features, features) * (variant.p / variant.q)
    if isinstance(variant, TargetedUnits):
        products = features @ swing.T
        return torch.diag_embed(products[:, None] * products[None, :]) * (variant.p * variant.q)
    if isinstance(variant, TargetedWeights):
        swing = swing * variant.q * targeted_weights(swing, variant.gamma)
    products = torch.einsum("oj,bj,cj->bco", swing.square(), features, features)
    if variant.learned:
        return torch.diag_embed(torch.einsum("oj,bj,cj->bco", LOG_VARIANCE.double().exp(), features, features))
    bias = BIAS.double().square() if variant.masks_bias else 0
    return torch.diag_embed(products + bias) * (variant.p / variant.q)


def swings(variant: MaskedWeight) -> Tensor:
    """Return how far each weight moves for noise one away from its mean."""
    weight = WEIGHT.double()
    return weight + variant.c * weight.sign() if isinstance(variant, Shakeout) else weight
