"""Feature-alpha dropout: alpha dropout of whole channels; it does not know how many space axes there are."""

from dataclasses import dataclass
from math import sqrt

from torch import Tensor

from service.dropout.alpha import SATURATION, saturate
from service.dropout.noise import Shape, Stream
from service.dropout.variant import ActivationVariant, Kind, shared_after_first


@dataclass(frozen=True)
class FeatureAlpha(ActivationVariant):
    """Set whole channels to SELU's saturation and rescale (Klambauer et al. 2017); torch's FeatureAlphaDropout."""

    name = "feature-alpha"
    equation = "y_c = a (m_c x_c - α′(1 - m_c)) + a α′ p, m_c ~ Bernoulli(q), a = 1 / √((α′² p + 1) q)"
    sampled = "one Bernoulli(q) per channel"
    shared = "all positions of a channel"
    mean_form = "a q x"
    variance_form = "a² p q (x + α′)²"
    reference = "Klambauer et al. 2017, NeurIPS (arXiv 1706.02515)"
    kinds = frozenset({Kind.ACTIVATION, Kind.RECURRENT, Kind.SELU})
    per_channel = True

    @property
    def a(self) -> float:
        """The scale that restores unit variance."""
        return 1 / sqrt((SATURATION**2 * self.p + 1) * self.q)

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether there are channels with positions to share over."""
        return super().fits(kind, shape) and len(shape) >= 2

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, C, 1, …]."""
        return stream.keep(self.q, shared_after_first(shape))

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return a (m x - α′(1 - m)) + a α′ p."""
        return saturate(x, noise, self.a, self.p)

    def mean(self, x: Tensor) -> Tensor:
        """Return a q x."""
        return self.a * self.q * x

    def variance(self, x: Tensor) -> Tensor:
        """Return a² p q (x + α′)²."""
        return self.a**2 * self.p * self.q * (x + SATURATION).square()
