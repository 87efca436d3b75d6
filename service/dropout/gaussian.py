"""Gaussian dropout, its operator and layer; it does not know which layer it follows."""

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ELEMENTWISE, ActivationVariant


@dataclass(frozen=True)
class Gaussian(ActivationVariant):
    """Multiply single elements by normal noise: y = ξ ∘ x, ξ ~ N(1, p / q) (Srivastava et al. 2014, §10)."""

    name = "gaussian"
    equation = "y = ξ ∘ x, ξ ~ N(1, p / q)"
    sampled = "one N(1, p / q) per element"
    shared = "nothing"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Srivastava et al. 2014, JMLR 15, §10"
    kinds = ELEMENTWISE
    scales = True

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw ξ [S, R, *shape]."""
        return (1 + sqrt(self.p / self.q) * stream.normal(shape)).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² p / q."""
        return x.square() * (self.p / self.q)


def _forward(x: Tensor, p: float, train: bool) -> Tensor:
    return x * (1 + sqrt(p / (1 - p)) * torch.randn_like(x)) if train else x


gaussian_dropout = register("gaussian_dropout(Tensor x, float p, bool train) -> Tensor", _forward)


class GaussianDropout(nn.Module):
    """Train with Gaussian dropout; the identity in eval mode.

    Args:
        p: The drop probability of the Bernoulli dropout whose variance it matches, 0 ≤ p < 1.
    """

    def __init__(self, p: float = Gaussian.p) -> None:
        super().__init__()
        self.p = Gaussian(p).p

    def forward(self, x: Tensor) -> Tensor:
        """Return ξ ∘ x in training, x in eval; the shape is kept."""
        y: Tensor = gaussian_dropout(x, self.p, self.training)
        return y
