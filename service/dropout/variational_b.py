"""Variational dropout, type B, as noisy columns of the weight; its layer stands beside type A."""

from dataclasses import dataclass
from math import sqrt

from torch import Tensor
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.variant import Kind, MaskedWeight


@dataclass(frozen=True)
class VariationalB(MaskedWeight):
    """Give each input N(1, α) noise: u = W (ξ ∘ x) + b, α = p / q (Kingma et al. 2015, §3.2).

    One ξ for each input, so all units see it and covary. The paper keeps α ≤ 1, that is p ≤ 1 / 2, in training.
    """

    name = "variational-b"
    equation = "u = W (ξ ∘ x) + b, ξ ~ N(1, α), α = p / q"
    sampled = "one N(1, α) per input of the layer"
    shared = "all units; all uses of the parameter; all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) W² x²"
    reference = "Kingma et al. 2015, NIPS (arXiv 1506.02557)"
    kinds = frozenset({Kind.WEIGHT})
    masks_bias = False
    oriented = True

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw ξ [S, R, 1, in]."""
        return (1 + sqrt(self.p / self.q) * stream.normal((1, *shape[1:]))).float()

    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Return the weight, its columns multiplied by ξ."""
        return parameter * noise

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return α W² x²."""
        return F.linear(x.square(), weight.square()) * (self.p / self.q)
