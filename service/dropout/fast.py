"""Fast dropout; it does not average inside the layer: every pass goes on."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from service.dropout.variant import Kind, SampledProduct


@dataclass(frozen=True)
class Fast(SampledProduct):
    """Draw each unit from dropout's moments: u ~ N(W x + b, (p / q) W² x²), bias kept (Wang & Manning 2013).

    The paper drops inputs without 1 / q; with W stored as its q W it is the same function. Units and rows are drawn
    apart, as it does; `variational-b` keeps the covariance between units that one set of dropped inputs gives.
    """

    name = "fast"
    equation = "u = W x + b + √((p / q) W² x²) ∘ z, z ~ N(0, 1)"
    sampled = "one N(0, 1) per unit"
    shared = "all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) W² x²"
    reference = "Wang & Manning 2013, ICML"
    kinds = frozenset({Kind.WEIGHT})

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def spread(self, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return (p / q) W² and 0."""
        return weight.square() * (self.p / self.q), weight.new_zeros(len(weight))
