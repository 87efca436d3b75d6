"""Max-drop, over maps or over channels, its operator and layer; it does not know what made the maps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import HIDDEN, ActivationVariant, Kind, shared_after_first


@dataclass(frozen=True)
class MaxDrop(ActivationVariant):
    """Drop the largest activation of single maps: y = x, but m x at each map's maximum (Park & Kwak 2016).

    Of equal maxima the first is meant. Nothing is rescaled, and all other activations stay as they are.
    """

    name = "max-drop"
    equation = "y = m x at the maximum of each map, x elsewhere, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per map"
    shared = "nothing"
    mean_form = "q x at the maximum, x elsewhere"
    variance_form = "p q x² at the maximum, 0 elsewhere"
    reference = "Park & Kwak 2016, ACCV"
    kinds = HIDDEN | {Kind.ACTIVATION}
    on_images = True
    over_channels: ClassVar[bool] = False

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether rows are maps [channels, height, width]."""
        return super().fits(kind, shape) and len(shape) == 3

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, channels, 1, 1]."""
        return stream.keep(self.q, shared_after_first(shape)).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x at the maxima, x elsewhere."""
        return torch.where(self.maxima(x), x * noise, x)

    def mean(self, x: Tensor) -> Tensor:
        """Return q x at the maxima, x elsewhere."""
        return torch.where(self.maxima(x), self.q * x, x)

    def variance(self, x: Tensor) -> Tensor:
        """Return p q x² at the maxima, 0 elsewhere."""
        return torch.where(self.maxima(x), self.p * self.q * x.square(), 0)

    def maxima(self, x: Tensor) -> Tensor:
        """Mark the first maximum of each map, or of each position over the channels, in [*, channels, h, w]."""
        values = x.flatten(-2) if not self.over_channels else x.flatten(-2).mT
        places = torch.arange(values.shape[-1], device=x.device)
        found = places == values.argmax(-1, keepdim=True)
        return (found.mT if self.over_channels else found).reshape(x.shape)


@dataclass(frozen=True)
class MaxDropChannel(MaxDrop):
    """Drop the largest activation of single positions over all channels (Park & Kwak 2016, channel-wise)."""

    name = "max-drop-channel"
    equation = "y = m x at the maximum over the channels of each position, x elsewhere, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per position"
    over_channels = True

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, 1, height, width]."""
        return stream.keep(self.q, (1, *shape[1:])).float()


def _forward(x: Tensor, p: float, over_channels: bool, train: bool) -> Tensor:
    if not train:
        return x
    variant = MaxDropChannel(p) if over_channels else MaxDrop(p)
    decided = x[:, :1] if over_channels else x[:, :, :1, :1]
    return variant.apply(x, (torch.rand_like(decided) >= p).to(x.dtype))


max_drop = register("max_drop(Tensor x, float p, bool over_channels, bool train) -> Tensor", _forward)


class MaxDrop2d(nn.Module):
    """Train with max-drop on maps [B, channels, height, width]; the identity in eval mode.

    Args:
        p: The probability of dropping a maximum, 0 ≤ p < 1.
        over_channels: Whether maxima are those of each position over the channels, rather than of each map.
    """

    def __init__(self, p: float = MaxDrop.p, over_channels: bool = False) -> None:
        super().__init__()
        self.p = MaxDrop(p).p
        self.over_channels = over_channels

    def forward(self, x: Tensor) -> Tensor:
        """Drop maxima of x in training; x in eval mode."""
        if x.dim() != 4:
            raise ValueError(f"MaxDrop2d takes [B, channels, height, width] and got the shape {tuple(x.shape)}")
        y: Tensor = max_drop(x, self.p, self.over_channels, self.training)
        return y
