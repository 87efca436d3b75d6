"""Masksembles, its operator and layers: a fixed set of masks, one for each pass; it does not know seeds."""

from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import HIDDEN, ActivationVariant, Kind
from service.errors import InvalidPlan

_LEAST_UNITS = 10
_MOST_MASKS = 1000
_MOST_SCALE = 6.0
_ATTEMPTS = 10_000
_SCALES = 1000


@dataclass(frozen=True)
class Masksembles(ActivationVariant):
    """Multiply by one of n fixed binary masks over units or channels, pass t by mask t (Durasov et al. 2021).

    The masks depend on n, scale and the number of units alone; neither seed nor row changes them. Nothing is rescaled.
    The n passes are the whole ensemble, so another number of passes is refused. `variance` divides by n, as a
    population's; what is served divides by n - 1, as everywhere.

    Attributes:
        n: The number of masks, a whole number.
        scale: How little masks overlap: 1 keeps every unit in each of them.
    """

    name = "masksembles"
    equation = "y = m_t ∘ x in pass t, m_1, …, m_n fixed"
    sampled = "nothing: n fixed masks"
    shared = "all positions of a channel"
    mean_form = "x Σ m_t / n"
    variance_form = "x² m̄ (1 - m̄), m̄ = Σ m_t / n"
    reference = "Durasov et al. 2021, CVPR (arXiv 2012.08334)"
    kinds = HIDDEN | {Kind.ACTIVATION}
    scales = True
    zeroes = True
    per_channel = True
    rated = False

    p: float = field(default=0.0, init=False, repr=False)
    n: float = 4
    scale: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.n <= _MOST_MASKS or self.n != int(self.n):
            raise InvalidPlan(f"{self.name}: n = {self.n} is not a number of masks; give 2 to {_MOST_MASKS}")
        if not 1 <= self.scale <= _MOST_SCALE:
            raise InvalidPlan(f"{self.name}: scale = {self.scale} is out of range; give 1 to {_MOST_SCALE:g}")

    @property
    def fixed_passes(self) -> int:
        """The number of masks."""
        return int(self.n)

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether there are units, or channels of a map, enough to make masks of."""
        return super().fits(kind, shape) and len(shape) in (1, 3) and shape[0] >= _LEAST_UNITS

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Return m_t [S, R, units, 1, …], the same for every row and seed."""
        passes = torch.arange(stream.first_pass, stream.first_pass + stream.passes) % self.fixed_passes
        rows = 1 if stream.rows is None else len(stream.rows)
        masks = self._shaped(shape)[passes].to(stream.device)
        return masks[:, None].expand(-1, rows, *masks.shape[1:])

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return m_t ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x m̄ for x [B, units, …]."""
        return x * self._shaped(x.shape[1:]).to(x).mean(0)

    def variance(self, x: Tensor) -> Tensor:
        """Return x² m̄ (1 - m̄), over the n masks, for x [B, units, …]."""
        kept = self._shaped(x.shape[1:]).to(x).mean(0)
        return x.square() * kept * (1 - kept)

    def _shaped(self, shape: Shape) -> Tensor:
        masks = make_masks(self.fixed_passes, self.scale, shape[0])
        return masks.reshape(*masks.shape, *[1] * (len(shape) - 1))


@lru_cache(maxsize=64)
def make_masks(n: int, scale: float, units: int) -> Tensor:
    """Make the masks [n, units] as the paper does: m ones among m · s places, places that no mask has left out.

    Raises:
        InvalidPlan: No masks of this scale cover so many units.
    """
    if units < _LEAST_UNITS:
        raise InvalidPlan(f"masksembles: {units} units are too few for masks; it needs {_LEAST_UNITS} or more")
    ones = int(units / (scale * (1 - (1 - 1 / scale) ** n)))
    start, stop = max(0.8 * scale, 1.0), 1.5 * scale
    tried = [scale, *(start + (stop - start) * step / _SCALES for step in range(_SCALES + 1))]
    wide = next((s for s in tried if _width(n, s, ones) >= units), None)
    if wide is None:
        raise InvalidPlan(f"masksembles: no {n} masks of scale {scale} cover {units} units; give another scale")
    key = f"masksembles/{n}/{float(scale)!r}/{units}"
    for attempt in range(_ATTEMPTS):
        numbers = Stream(0, key, attempt, 1).uniform((n, int(ones * wide)))[0, 0]
        masks = torch.zeros(numbers.shape).scatter_(1, numbers.argsort(dim=1, stable=True)[:, :ones], 1.0)
        masks = masks[:, masks.any(0)]
        if masks.shape[1] == _width(n, wide, ones):
            return masks[:, :units]
    raise InvalidPlan(f"masksembles: no {n} masks of scale {scale} were found for {units} units; give another scale")


def _width(n: int, scale: float, ones: int) -> int:
    """Return the number of places that some mask has, as expected."""
    return int(ones * scale * (1 - (1 - 1 / scale) ** n))


def _forward(x: Tensor, masks: Tensor, scale: float, train: bool) -> Tensor:
    """Multiply the first n-th of the rows by the first mask, and so on."""
    if not train:
        return x
    group = torch.arange(x.shape[0], device=x.device) * masks.shape[0] // x.shape[0]
    return x * masks[group].reshape(x.shape[0], masks.shape[1], *[1] * (x.dim() - 2)).to(x.dtype)


masksembles = register("masksembles(Tensor x, Tensor masks, float scale, bool train) -> Tensor", _forward)


class Masksembles1d(nn.Module):
    """Train with masksembles on units [B, units]: each n-th of a batch has a mask of its own; the identity in eval.

    The members of the ensemble are the passes that the service runs; eval mode keeps every unit and is none of them.

    Args:
        units: The number of units, or channels.
        n: The number of masks.
        scale: How little they overlap.
    """

    axes = 2
    masks: Tensor

    def __init__(self, units: int, n: int = 4, scale: float = Masksembles.scale) -> None:
        super().__init__()
        known = Masksembles(n, scale)
        self.scale = known.scale
        self.register_buffer("masks", make_masks(known.fixed_passes, known.scale, units).clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return m ∘ x in training, x in eval; the shape is kept."""
        if x.dim() != self.axes or x.shape[1] != self.masks.shape[1]:
            raise ValueError(f"{type(self).__name__} of {self.masks.shape[1]} units got the shape {tuple(x.shape)}")
        y: Tensor = masksembles(x, self.masks, self.scale, self.training)
        return y


class Masksembles2d(Masksembles1d):
    """Train with masksembles on the channels of maps [B, channels, height, width]; the identity in eval mode."""

    axes = 4
