"""The units that one pass keeps: values and weights of these alone, and back again; it does not know graphs."""

from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor

_STEP = 16  # products of so many columns more are as fast as of one more


@dataclass(frozen=True, eq=False)
class Kept:
    """The units of a site that one pass keeps, and a few more that fill a step up.

    Attributes:
        index: Which units [K].
        scale: What each is multiplied by [K]; 0 for those that fill up.
    """

    index: Tensor
    scale: Tensor


@dataclass(frozen=True, eq=False)
class Scratch:
    """Memory that one pass after the other gathers its weights into: fresh memory costs more than the gathering."""

    parts: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def take(self, x: Tensor, axis: int, kept: Kept, key: tuple[int, int]) -> Tensor:
        """Return x at the kept entries of an axis, in memory that the next call with this key overwrites."""
        if axis and x.dtype == torch.bfloat16:  # torch picks its columns more slowly than float32's
            return self.take(x.float(), axis, kept, key).to(x.dtype)
        shape = (*x.shape[:axis], len(kept.index), *x.shape[axis + 1 :])
        size = prod(shape)
        if key not in self.parts or self.parts[key].numel() < size:
            self.parts[key] = x.new_empty(min(x.numel(), size + size // 8))
        return torch.index_select(x, axis, kept.index, out=self.parts[key][:size].view(shape))


def kept_units(noise: Tensor) -> list[Kept]:
    """Return what each pass of noise [S, 1, U, …] keeps, its other axes being of size 1."""
    noise = noise.flatten(1)
    units = noise.shape[1]
    step = max(1, min(_STEP, units // 16))
    order = (noise == 0).to(torch.uint8).argsort(dim=1, stable=True)
    scales = noise.gather(1, order)
    counts = [min(units, max(1, -(-count // step)) * step) for count in (noise != 0).sum(1).tolist()]
    return [Kept(index[:count], scale[:count]) for index, scale, count in zip(order, scales, counts, strict=True)]


def laid_by_unit(x: Tensor) -> Tensor:
    """Return x [B, U, …] laid out so that units are picked as whole runs of memory."""
    return x.contiguous() if x.dim() > 2 else x.t().contiguous().t()


def select_units(x: Tensor, kept: Kept) -> Tensor:
    """Return x [B, U, …] at the kept units, not yet scaled [B, K, …]."""
    return x.index_select(1, kept.index) if x.dim() > 2 or x.is_contiguous() else x.t().index_select(0, kept.index).t()


def scale_units(x: Tensor, kept: Kept) -> Tensor:
    """Return the kept units [B, K · n, …], scaled."""
    apart = torch.unflatten(x, 1, (len(kept.index), -1))
    return (apart * kept.scale.to(x.dtype).view(-1, *[1] * (apart.dim() - 2))).flatten(1, 2)


def select_outputs(parameter: Tensor, kept: Kept) -> Tensor:
    """Return a parameter [U] of the kept units [K]."""
    return parameter.index_select(0, kept.index)


def select_weight(
    weight: Tensor,
    outputs: Kept | None,
    inputs: Kept | None,
    units: int,
    scaled: bool,
    scratch: Scratch,
    place: int,
) -> Tensor:
    """Return a weight [O, I, …] of the kept outputs and inputs alone, the inputs' scale in it.

    Args:
        weight: Of a linear layer or a convolution.
        outputs: The outputs that a later site keeps; None for all.
        inputs: The units that an earlier site keeps; None for all.
        units: How many units the inputs are; each has I / units neighbouring columns.
        scaled: Whether the inputs are scaled already.
        scratch: Where to put it.
        place: A number of this weight's own there.
    """
    if outputs is not None:
        weight = scratch.take(weight, 0, outputs, (place, 0))
    if inputs is None:
        return weight
    columns = scratch.take(torch.unflatten(weight, 1, (units, -1)), 1, inputs, (place, 1))
    if not scaled:
        columns *= inputs.scale.to(weight.dtype).view(-1, *[1] * (columns.dim() - 2))
    return columns.flatten(1, 2)


def spread_units(x: Tensor, kept: Kept, units: int, scaled: bool) -> Tensor:
    """Return x [B, K · n, …] scaled and back among all units [B, U · n, …], 0 where a unit was dropped."""
    apart = torch.unflatten(x if scaled else scale_units(x, kept), 1, (len(kept.index), -1))
    whole = x.new_zeros(len(x), units, *apart.shape[2:])
    return whole.index_copy_(1, kept.index, apart).flatten(1, 2)
