"""Cutout, its operator and layer; it does not know what an image's zero means."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ActivationVariant, Kind
from service.errors import InvalidPlan

_WORD_BITS = 32


@dataclass(frozen=True)
class Cutout(ActivationVariant):
    """Set one square of an image [C, H, W] to zero: y = (1 - m) ∘ x, m = 1 on the square (DeVries & Taylor 2017).

    The square's centre is uniform over the pixels and the square is cut off at the border, so that all of it or as
    little as a corner lies inside; where its side is even, the centre is the first pixel of the second half. Nothing is
    rescaled: the mean is (1 - P) ∘ x, P being how often a pixel is covered. Zero is meant in the units that the network
    sees: where inputs are standardised before it, as in the paper, that is their mean.

    Attributes:
        size: The square's side in pixels, a whole number; the image's shorter side where that is less.
    """

    name = "cutout"
    equation = "y = (1 - m) ∘ x, m = 1 on a square whose centre is uniform over H W"
    sampled = "one of the H W centres per image"
    shared = "all channels; all positions of the square"
    mean_form = "(1 - P) x"
    variance_form = "P (1 - P) x²"
    reference = "DeVries & Taylor 2017 (arXiv 1708.04552)"
    kinds = frozenset({Kind.INPUT})
    rated = False
    on_images = True

    p: float = field(default=0.0, init=False, repr=False)
    size: float = 16.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.size >= 1 or self.size % 1:
            raise InvalidPlan(f"{self.name}: size = {self.size} is not a side; give a whole number of pixels above 0")

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether the site is an image of channels, height and width, and of more than one pixel's width."""
        return super().fits(kind, shape) and len(shape) == 3 and 1 not in shape[1:]

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw a number below 2³² for the centre [S, R, 1, …]; images of every size scale the same one."""
        ones = (1,) * len(shape)
        words: Tensor = stream.uniform(ones) * 2**_WORD_BITS
        return words.long()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return (1 - m) ∘ x."""
        height, width = x.shape[-2:]
        centre = (noise * (height * width)) >> _WORD_BITS
        row, column = (torch.arange(length, device=x.device) for length in (height, width))
        side = self.side(height, width)
        covered = _covers(centre // width, row[:, None], side) & _covers(centre % width, column, side)
        return x * ~covered

    def mean(self, x: Tensor) -> Tensor:
        """Return (1 - P) x."""
        return x * (1 - self._covered(x))

    def variance(self, x: Tensor) -> Tensor:
        """Return P (1 - P) x²."""
        covered = self._covered(x)
        return x.square() * (covered * (1 - covered))

    def side(self, height: int, width: int) -> int:
        """Return the square's side on an image."""
        return min(int(self.size), height, width)

    def _covered(self, x: Tensor) -> Tensor:
        """Return P [H, W]."""
        side = self.side(*x.shape[-2:])
        places = (torch.arange(length, device=x.device) for length in x.shape[-2:])
        rows, columns = (_covers(place[:, None], place, side).double().mean(0) for place in places)
        return torch.outer(rows, columns).to(x.dtype)


def _covers(centre: Tensor, place: Tensor, side: int) -> Tensor:
    """Tell whether the interval of length `side` around each centre holds each place, broadcasting."""
    first = centre - side // 2
    return (place >= first) & (place < first + side)


def _forward(x: Tensor, size: int, train: bool) -> Tensor:
    if not train:
        return x
    return Cutout(size).apply(x, torch.randint(2**_WORD_BITS, (x.shape[0], 1, 1, 1), device=x.device))


cutout = register("cutout(Tensor x, int size, bool train) -> Tensor", _forward)


class Cutout2d(nn.Module):
    """Train with cutout on images [B, C, H, W], every row with a square of its own; the identity in eval mode.

    Args:
        size: The square's side in pixels.
    """

    def __init__(self, size: int = int(Cutout.size)) -> None:
        super().__init__()
        self.size = int(Cutout(size).size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (1 - m) ∘ x in training, x in eval; the shape is kept."""
        if x.dim() != 4:
            raise ValueError(f"Cutout2d needs images [B, C, H, W]; got the shape {tuple(x.shape)}")
        y: Tensor = cutout(x, self.size, self.training)
        return y
