"""What the noise of the catalogue's element-wise variants does, by one of four laws, and who shares a draw.

It does not know how numbers are made, and takes no Triton.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from math import prod, sqrt

from service.dropout import (
    Alpha,
    Bernoulli,
    Concrete,
    DropPath,
    FeatureAlpha,
    Gaussian,
    LayerDrop,
    Locked,
    Spatial,
    SpatialConcrete,
    Uniform,
    Variant,
)
from service.dropout.alpha import SATURATION
from service.dropout.concrete import logit
from service.dropout.noise import Shape

_COLDEST = 1 / 32  # temperatures below would make more of float32's rounding than 1e-5


class Law(StrEnum):
    """What noise does to x, by three numbers a, b and c."""

    KEPT = "kept"
    """a x + b where m, else c; m ~ Bernoulli(q)."""
    NORMAL = "normal"
    """(1 + a z) x, z ~ N(0, 1)."""
    UNIFORM = "uniform"
    """(1 + a (2 u - 1)) x, u ~ U(0, 1)."""
    RELAXED = "relaxed"
    """a sigm(-c (b + logit u)) x, u ~ U(0, 1)."""


@dataclass(frozen=True)
class Noise:
    """A law with its numbers, and the probability of keeping where it has one."""

    law: Law
    a: float
    b: float = 0.0
    c: float = 0.0
    q: float = 1.0


@dataclass(frozen=True)
class Sharing:
    """A row [outer, units, inner], of which each unit has one draw.

    Attributes:
        outer: How often the units come one after the other.
        units: How many draws a row has.
        inner: How many neighbouring elements a unit has.
    """

    outer: int
    units: int
    inner: int

    @staticmethod
    def of(variant: Variant, shape: Shape, channel_axes: int) -> "Sharing":
        """Return how a variant shares draws in a row of this shape, whose first axes number its channels."""
        if isinstance(variant, Locked):
            return Sharing(shape[0], prod(shape[1:]), 1)
        own = channel_axes if variant.per_channel else 0 if isinstance(variant, _OF_BRANCHES) else len(shape)
        return Sharing(1, prod(shape[:own]), prod(shape[own:]))


_OF_BRANCHES = (DropPath, LayerDrop)


def noise_of(variant: Variant) -> Noise | None:
    """Return what a variant's noise does; None where none of the laws is its."""
    law = _LAWS.get(type(variant))
    return law(variant) if law is not None else None


def _scaled(variant: Variant) -> Noise:
    return Noise(Law.KEPT, 1 / variant.q, q=variant.q)


def _unscaled(variant: Variant) -> Noise:
    return Noise(Law.KEPT, 1.0, q=variant.q)


def _saturated(variant: Variant) -> Noise:
    assert isinstance(variant, Alpha | FeatureAlpha)
    level = variant.a * SATURATION
    return Noise(Law.KEPT, variant.a, level * variant.p, level * variant.p - level, variant.q)


def _normal(variant: Variant) -> Noise:
    return Noise(Law.NORMAL, sqrt(variant.p / variant.q))


def _uniform(variant: Variant) -> Noise:
    assert isinstance(variant, Uniform)
    return Noise(Law.UNIFORM, variant.half_width)


def _relaxed(variant: Variant) -> Noise | None:
    assert isinstance(variant, Concrete)
    return Noise(Law.RELAXED, 1 / variant.q, logit(variant.p), 1 / variant.t) if variant.t >= _COLDEST else None


_LAWS: dict[type[Variant], Callable[[Variant], Noise | None]] = {
    **dict.fromkeys((Bernoulli, Spatial, Locked, DropPath), _scaled),
    **dict.fromkeys((Alpha, FeatureAlpha), _saturated),
    **dict.fromkeys((Concrete, SpatialConcrete), _relaxed),
    LayerDrop: _unscaled,
    Gaussian: _normal,
    Uniform: _uniform,
}
ELEMENTWISE = frozenset(_LAWS)
"""The variants that have one of the laws."""
