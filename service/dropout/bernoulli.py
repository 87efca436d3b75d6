"""Standard dropout; it does not know which layer it follows."""

from dataclasses import dataclass

from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.variant import ELEMENTWISE, ActivationVariant, scaled_keep


@dataclass(frozen=True)
class Bernoulli(ActivationVariant):
    """Drop single elements: y = (m / q) ∘ x, m ~ Bernoulli(q) (Hinton et al. 2012; Srivastava et al. 2014)."""

    name = "bernoulli"
    equation = "y = (m / q) ∘ x, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per element"
    shared = "nothing"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Srivastava et al. 2014, JMLR 15"
    kinds = ELEMENTWISE
    scales = True
    zeroes = True

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m / q [S, R, *shape]."""
        return scaled_keep(stream, self.q, shape)

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² p / q."""
        return x.square() * (self.p / self.q)
