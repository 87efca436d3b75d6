"""Streaming central moments up to the fourth, which merge in any order; it does not know what the values mean.

Merging follows Pébay (2008), "Formulas for robust, one-pass parallel computation of covariances and arbitrary-order
statistical moments", in float64.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_PART_ELEMENTS = 1 << 15  # what is summed at once: its copies should stay in the cache


@dataclass(frozen=True)
class Moments:
    """The count and the central sums Σ(x - mean)ᵏ of some passes, element by element.

    Attributes:
        count: How many passes, N.
        mean: Their mean [B, …].
        m2: Σ(x - mean)².
        m3: Σ(x - mean)³.
        m4: Σ(x - mean)⁴.
    """

    count: int
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @staticmethod
    def of(values: Tensor) -> "Moments":
        """Return the moments of a chunk of passes [S, B, …]."""
        count, shape = values.shape[0], values.shape[1:]
        if values.numel() <= _PART_ELEMENTS:
            return Moments(count, *_sums(values))
        columns = max(1, _PART_ELEMENTS // count)
        parts = [_sums(part) for part in torch.split(values.reshape(count, -1), columns, 1)]
        return Moments(count, *(torch.cat(each).view(shape) for each in zip(*parts, strict=True)))

    def merge(self, other: "Moments") -> "Moments":
        """Return the moments of both sets of passes together."""
        a, b = self.count, other.count
        n = a + b
        d = other.mean - self.mean
        d2 = d.square()
        m2 = self.m2 + other.m2 + d2 * (a * b / n)
        m3 = self.m3 + other.m3 + d * d2 * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n
        m4 = (
            self.m4 + other.m4 + d2.square() * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d2 * (a * a * other.m2 + b * b * self.m2) / n**2 + 4 * d * (a * other.m3 - b * self.m3) / n
        )  # fmt: skip
        return Moments(n, self.mean + d * (b / n), m2, m3, m4)

    def of_rows(self, rows: Tensor) -> "Moments":
        """Return the moments of some rows, named by truth values or indices."""
        return Moments(self.count, self.mean[rows], self.m2[rows], self.m3[rows], self.m4[rows])

    @property
    def variance(self) -> Tensor:
        """The unbiased variance between passes: Σ(x - mean)² / (N - 1)."""
        return self.m2 / (self.count - 1)

    @property
    def standard_error(self) -> Tensor:
        """The Monte-Carlo standard error of the mean: √(variance / N)."""
        return (self.variance / self.count).sqrt()

    @property
    def variance_standard_error(self) -> Tensor:
        """The standard error of the variance: √((μ₄ - σ⁴ (N - 3) / (N - 1)) / N)."""
        n = self.count
        spread = self.m4 / n - self.variance.square() * ((n - 3) / (n - 1))
        return (spread / n).clamp_min(0).sqrt()


def _sums(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the mean and the central sums of values [S, …], each […] in float64."""
    shifted = values.double()
    origin = shifted[0]  # equal passes differ from it by 0, so that they have no spread at all
    shifted = shifted - origin
    offset = shifted.mean(0)
    centred = shifted.sub_(offset)
    square = centred.square()
    m2, m3 = square.sum(0), centred.mul_(square).sum(0)
    return origin + offset, m2, m3, square.square_().sum(0)
