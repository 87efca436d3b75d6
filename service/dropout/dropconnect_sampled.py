"""DropConnect's Gaussian sampled inference; it does not average inside the layer: every pass goes on."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from service.dropout.variant import Kind, SampledProduct


@dataclass(frozen=True)
class DropConnectSampled(SampledProduct):
    """Draw each unit's product from its moments: u ~ N(W x + b, (p / q)(W² x² + b²)) (Wan et al. 2013, Algorithm 2).

    Mean, variance and zero covariance between units are exact for a fixed x; higher cumulants are not. It serves inputs
    whose axes are rows and features; elsewhere exact masks serve.
    """

    name = "dropconnect-sampled"
    equation = "u = W x + b + √((p / q)(W² x² + b²)) ∘ z, z ~ N(0, 1)"
    sampled = "one N(0, 1) per unit"
    shared = "all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) (W² x² + b²)"
    reference = "Wan et al. 2013, ICML, Algorithm 2"
    kinds = frozenset({Kind.WEIGHT})

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def spread(self, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p / q) W² and (p / q) b²."""
        squares = weight.new_zeros(len(weight)) if bias is None else bias.square()
        return weight.square() * (self.p / self.q), squares * (self.p / self.q)
