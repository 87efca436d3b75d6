"""Locked dropout, its operator and layer: one mask for all steps of a sequence; it does not know how long it is."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ActivationVariant, Kind, scaled_keep


@dataclass(frozen=True)
class Locked(ActivationVariant):
    """Drop units for a whole sequence: y_tc = (m_c / q) x_tc, m_c ~ Bernoulli(q) (Merity et al. 2018, §4.2).

    A row is a sequence [steps, units]. Longer sequences keep the masks of shorter ones.
    """

    name = "locked"
    equation = "y_tc = (m_c / q) x_tc, m_c ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per unit"
    shared = "all steps of a unit"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Merity et al. 2018, ICLR (arXiv 1708.02182)"
    kinds = frozenset({Kind.RECURRENT, Kind.ACTIVATION, Kind.INPUT})

    p: float = 0.4

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether a row is a sequence of units."""
        return super().fits(kind, shape) and len(shape) == 2

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m / q [S, R, 1, units, …]."""
        return scaled_keep(stream, self.q, (1, *shape[1:]))

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² p / q."""
        return x.square() * (self.p / self.q)


def _forward(x: Tensor, batch_first: bool, p: float, train: bool) -> Tensor:
    if not train:
        return x
    steps = 1 if batch_first else 0
    shape = [1 if axis == steps else size for axis, size in enumerate(x.shape)]
    return x * ((torch.rand(shape, device=x.device) >= p).to(x.dtype) / (1 - p))


locked_dropout = register("locked_dropout(Tensor x, bool batch_first, float p, bool train) -> Tensor", _forward)


class LockedDropout(nn.Module):
    """Train with one mask over the units of each sequence, the same at every step; the identity in eval mode.

    Args:
        p: The probability of dropping a unit, 0 ≤ p < 1.
        batch_first: Whether inputs are [B, steps, units] rather than [steps, B, units], which is torch's default.
    """

    def __init__(self, p: float = Locked.p, batch_first: bool = True) -> None:
        super().__init__()
        self.p = Locked(p).p
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        """Return (m / q) ∘ x in training, x in eval; the shape is kept."""
        if x.dim() != 3:
            raise ValueError(f"LockedDropout takes sequences [B, steps, units]; it got the shape {tuple(x.shape)}")
        y: Tensor = locked_dropout(x, self.batch_first, self.p, self.training)
        return y
