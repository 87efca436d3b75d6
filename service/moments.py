"""Streaming central moments, which merge in any order; it does not know what the values mean.

Merging follows Pébay (2008), "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
statistical moments", in float64.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

_PART_ELEMENTS = 1 << 15  # what is summed at once: its copies should stay in the cache


@dataclass(frozen=True)
class Spread:
    """The count, the mean and the central sum of squares of some passes, element by element.

    Attributes:
        count: How many passes, N.
        mean: Their mean [B, …].
        m2: Σ(x - mean)².
    """

    count: int
    mean: Tensor
    m2: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Self:
        """Return those of a chunk of passes [S, B, …]."""
        count, shape = values.shape[0], values.shape[1:]
        if values.numel() <= _PART_ELEMENTS:
            return cls(count, *cls._sums(values))
        columns = max(1, _PART_ELEMENTS // count)
        parts = [cls._sums(part) for part in torch.split(values.reshape(count, -1), columns, 1)]
        return cls(count, *(torch.cat(each).view(shape) for each in zip(*parts, strict=True)))

    @staticmethod
    def _sums(values: Tensor) -> tuple[Tensor, ...]:
        """Return the mean and the central sums of values [S, …], each […] in float64."""
        mean, centred = _centred(values)
        return mean, centred.square_().sum(0)

    def merge(self, other: Self) -> Self:
        """Return those of both sets of passes together."""
        n = self.count + other.count
        return type(self)(n, *self._merged(other, other.mean - self.mean))

    def _merged(self, other: Self, d: Tensor) -> tuple[Tensor, ...]:
        """Return mean and sums of both, whose means are d apart."""
        a, b = self.count, other.count
        n = a + b
        return self.mean + d * (b / n), self.m2 + other.m2 + d.square() * (a * b / n)

    def of_rows(self, rows: Tensor) -> Self:
        """Return those of some rows, named by truth values or indices."""
        return replace(self, mean=self.mean[rows], m2=self.m2[rows])

    @property
    def variance(self) -> Tensor:
        """The unbiased variance between passes: Σ(x - mean)² / (N - 1)."""
        return self.m2 / (self.count - 1)

    @property
    def standard_error(self) -> Tensor:
        """The Monte-Carlo standard error of the mean: √(variance / N)."""
        return (self.variance / self.count).sqrt()


@dataclass(frozen=True)
class Moments(Spread):
    """The same up to the fourth moment, which tells how well the variance is known.

    Attributes:
        m3: Σ(x - mean)³.
        m4: Σ(x - mean)⁴.
    """

    m3: Tensor
    m4: Tensor

    @staticmethod
    def _sums(values: Tensor) -> tuple[Tensor, ...]:
        mean, centred = _centred(values)
        square = centred.square()
        m2, m3 = square.sum(0), centred.mul_(square).sum(0)
        return mean, m2, m3, square.square_().sum(0)

    def _merged(self, other: Self, d: Tensor) -> tuple[Tensor, ...]:
        a, b = self.count, other.count
        n, d2 = a + b, d.square()
        m3 = self.m3 + other.m3 + d * d2 * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n
        m4 = (
            self.m4 + other.m4 + d2.square() * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d2 * (a * a * other.m2 + b * b * self.m2) / n**2 + 4 * d * (a * other.m3 - b * self.m3) / n
        )  # fmt: skip
        return *super()._merged(other, d), m3, m4

    def of_rows(self, rows: Tensor) -> Self:
        """Return those of some rows, named by truth values or indices."""
        return replace(super().of_rows(rows), m3=self.m3[rows], m4=self.m4[rows])

    @property
    def variance_standard_error(self) -> Tensor:
        """The standard error of the variance: √((μ₄ - σ⁴ (N - 3) / (N - 1)) / N)."""
        n = self.count
        spread = self.m4 / n - self.variance.square() * ((n - 3) / (n - 1))
        return (spread / n).clamp_min(0).sqrt()


def _centred(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of values [S, …] and their differences from it, in float64."""
    shifted = values.double()
    origin = shifted[0]  # equal passes differ from it by 0, so that they have no spread at all
    shifted = shifted - origin
    offset = shifted.mean(0)
    return origin + offset, shifted.sub_(offset)
