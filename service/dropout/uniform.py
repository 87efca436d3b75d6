"""Uniform (continuous) dropout, its operator and layer; it does not know which layer it follows."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ELEMENTWISE, ActivationVariant


@dataclass(frozen=True)
class Uniform(ActivationVariant):
    """Multiply single elements by uniform noise: y = u ∘ x, u ~ U(1 - b, 1 + b) (Shen et al. 2018).

    The half width b = √(3 p / q) gives the noise the variance p / q that the other variants have at the same rate.
    p = 0.25 is the paper's U(0, 1) after rescaling to mean 1 (b = 1); beyond it some multipliers are negative.
    """

    name = "uniform"
    equation = "y = u ∘ x, u ~ U(1 - b, 1 + b), b = √(3 p / q)"
    sampled = "one U(1 - b, 1 + b) per element"
    shared = "nothing"
    mean_form = "x"
    variance_form = "x² b² / 3 = x² p / q"
    reference = "Shen et al. 2018 (arXiv 1911.12675)"
    kinds = ELEMENTWISE
    scales = True

    p: float = 0.25

    @property
    def half_width(self) -> float:
        """The distance b of the noise's ends from 1."""
        return sqrt(3 * self.p / self.q)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw u [S, R, *shape]."""
        return (1 + self.half_width * (2 * stream.uniform(shape) - 1)).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² b² / 3."""
        return x.square() * (self.half_width**2 / 3)


def _forward(x: Tensor, p: float, train: bool) -> Tensor:
    return x * (1 + sqrt(3 * p / (1 - p)) * (2 * torch.rand_like(x) - 1)) if train else x


uniform_dropout = register("uniform_dropout(Tensor x, float p, bool train) -> Tensor", _forward)


class UniformDropout(nn.Module):
    """Train with uniform dropout; the identity in eval mode.

    Args:
        p: The drop probability of the Bernoulli dropout whose variance it matches, 0 ≤ p < 1.
    """

    def __init__(self, p: float = Uniform.p) -> None:
        super().__init__()
        self.p = Uniform(p).p

    def forward(self, x: Tensor) -> Tensor:
        """Return u ∘ x in training, x in eval; the shape is kept."""
        y: Tensor = uniform_dropout(x, self.p, self.training)
        return y
