"""Alpha dropout, for self-normalising networks; it does not know whether its input is normalised."""

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.variant import ActivationVariant, Kind

SATURATION = 1.7580993408473766  # α′ = λα of SELU: dropped units take the value -α′


@dataclass(frozen=True)
class Alpha(ActivationVariant):
    """Set elements to SELU's saturation and rescale: y = a (m x - α′(1 - m)) + a α′ p (Klambauer et al. 2017).

    It keeps mean and variance over x ~ N(0, 1), not at a fixed x: the mean of the passes is a q x, not x.
    """

    name = "alpha"
    equation = "y = a (m x - α′(1 - m)) + a α′ p, m ~ Bernoulli(q), a = 1 / √((α′² p + 1) q)"
    sampled = "one Bernoulli(q) per element"
    shared = "nothing"
    mean_form = "a q x"
    variance_form = "a² p q (x + α′)²"
    reference = "Klambauer et al. 2017, NeurIPS (arXiv 1706.02515)"
    kinds = frozenset({Kind.ACTIVATION, Kind.RECURRENT, Kind.SELU})

    @property
    def a(self) -> float:
        """The scale that restores unit variance."""
        return 1 / sqrt((SATURATION**2 * self.p + 1) * self.q)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, *shape]."""
        return stream.keep(self.q, shape)

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return a (m x - α′(1 - m)) + a α′ p."""
        return saturate(x, noise, self.a, self.p)

    def mean(self, x: Tensor) -> Tensor:
        """Return a q x."""
        return self.a * self.q * x

    def variance(self, x: Tensor) -> Tensor:
        """Return a² p q (x + α′)²."""
        return self.a**2 * self.p * self.q * (x + SATURATION).square()


def saturate(x: Tensor, keep: Tensor, a: float, p: float) -> Tensor:
    """Return a (m x - α′(1 - m)) + a α′ p for truth values m, broadcasting."""
    m = keep.to(x.dtype)
    return a * (m * x - SATURATION * (1 - m)) + a * SATURATION * p
