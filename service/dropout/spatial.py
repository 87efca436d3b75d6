"""Spatial dropout; it does not know how many space axes there are."""

from dataclasses import dataclass

from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.variant import HIDDEN, ActivationVariant, Kind, scaled_keep, shared_after_first


@dataclass(frozen=True)
class Spatial(ActivationVariant):
    """Drop whole channels: y_c = (m_c / q) x_c (Tompson et al. 2015); torch's Dropout1d, 2d and 3d."""

    name = "spatial"
    equation = "y_c = (m_c / q) x_c, m_c ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per channel"
    shared = "all positions of a channel"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Tompson et al. 2015, CVPR (arXiv 1411.4280)"
    kinds = HIDDEN | {Kind.ACTIVATION, Kind.RECURRENT}
    scales = True
    zeroes = True
    per_channel = True

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether there are channels with positions to share over."""
        return super().fits(kind, shape) and len(shape) >= 2

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m / q [S, R, C, 1, …]."""
        return scaled_keep(stream, self.q, shared_after_first(shape))

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² p / q."""
        return x.square() * (self.p / self.q)
