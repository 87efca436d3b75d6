"""The windows of a pooling layer, and what stands in each of them; it does not know what is random.

Any axes may come before the pooled ones, which are the last. What padding adds can never win.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import inf

import torch
from torch import Tensor, nn
from torch.nn import functional as F

GEOMETRY = "int[] kernel, int[] stride, int[] padding, int[] dilation, bool ceil"
_MAXIMA = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
Sizes = int | Sequence[int]


@dataclass(frozen=True)
class Window:
    """The geometry of a pooling layer, one number for each pooled axis, with torch's meaning.

    Attributes:
        kernel: How many entries a window holds.
        stride: How far it moves.
        padding: How many entries are added on either side.
        dilation: How far apart its entries are.
        ceil: Whether a last window may reach beyond the end.
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    ceil: bool = False

    def __post_init__(self) -> None:
        if not all(2 * add <= width for add, width in zip(self.padding, self.widths, strict=True)):
            raise ValueError(f"padding {self.padding} is more than half of windows {self.widths} wide; give less")

    @staticmethod
    def of(
        dims: int, kernel: Sizes, stride: Sizes = (), padding: Sizes = 0, dilation: Sizes = 1, ceil: bool = False
    ) -> "Window":
        """Read a window of `dims` axes as torch does: one number serves all axes, no stride is the kernel."""
        step = kernel if stride == () or stride == [] else stride
        sizes = [_for_each(dims, each) for each in (kernel, step, padding, dilation)]
        return Window(sizes[0], sizes[1], sizes[2], sizes[3], ceil)

    @property
    def dims(self) -> int:
        """How many axes are pooled."""
        return len(self.kernel)

    @property
    def widths(self) -> tuple[int, ...]:
        """How far each window reaches, its gaps included."""
        return tuple((size - 1) * gap + 1 for size, gap in zip(self.kernel, self.dilation, strict=True))

    @property
    def sizes(self) -> tuple[list[int], list[int], list[int], list[int], bool]:
        """The geometry as operators take it."""
        return list(self.kernel), list(self.stride), list(self.padding), list(self.dilation), self.ceil

    def outputs(self, lengths: Sequence[int]) -> tuple[int, ...]:
        """Return how many windows there are along each pooled axis of these lengths."""
        geometry = zip(lengths, self.widths, self.stride, self.padding, strict=True)
        return tuple(self._count(*each) for each in geometry)

    def _count(self, length: int, width: int, stride: int, padding: int) -> int:
        room = length + 2 * padding - width
        if not self.ceil:
            return room // stride + 1
        count = (room + stride - 1) // stride + 1
        return count - 1 if (count - 1) * stride >= length + padding else count


class PoolingLayer(nn.Module):
    """The window of a layer that pools.

    Args:
        kernel_size: How many entries a window holds, for all axes or for each.
        stride: How far it moves; the kernel's size if None.
        padding: How many entries are added on either side; they never win.
        dilation: How far apart its entries are.
        ceil_mode: Whether a last window may reach beyond the end.
    """

    dims: int

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__()
        self.window = Window.of(self.dims, kernel_size, () if stride is None else stride, padding, dilation, ceil_mode)

    def check(self, x: Tensor) -> None:
        """Check that x has rows and channels before the pooled axes.

        Raises:
            ValueError: It has not.
        """
        if x.dim() != self.dims + 2:
            raise ValueError(f"{type(self).__name__} takes {self.dims + 2} axes and got the shape {tuple(x.shape)}")


def maximum(x: Tensor, window: Window) -> Tensor:
    """Return the largest entry of each window [..., *lengths] → [..., *outputs]."""
    if x.requires_grad or x.device.type != "cpu":  # of equal entries, torch's own gives the first the gradient
        return stock_maximum(x, window)
    first = x.dim() - window.dims
    geometry = zip(window.kernel, window.stride, window.padding, window.dilation, strict=True)
    for axis, (sizes, count) in enumerate(zip(geometry, window.outputs(x.shape[first:]), strict=True), start=first):
        x = _maximum_along(x, axis, count, *sizes)
    return x


def _maximum_along(x: Tensor, axis: int, count: int, size: int, step: int, add: int, gap: int) -> Tensor:
    """Pool one axis, all windows at once: on a processor far faster than window by window."""
    reach = (count - 1) * step + (size - 1) * gap + 1
    beyond = max(0, reach - add - x.shape[axis])
    if add or beyond:
        x = F.pad(x, [0, 0] * (x.dim() - 1 - axis) + [add, beyond], value=-inf)
    before, span = (slice(None),) * axis, (count - 1) * step + 1
    entries = (x[(*before, slice(at * gap, at * gap + span, step))] for at in range(size))
    return reduce(torch.maximum, entries)


def stock_maximum(x: Tensor, window: Window) -> Tensor:
    """Return what `maximum` does, by torch's own operator."""
    is_plain = x.dim() == window.dims + 2
    plain = x if is_plain else x.reshape(-1, 1, *x.shape[-window.dims :])
    kernel, stride, padding, dilation, ceil = window.sizes
    pooled: Tensor = _MAXIMA[window.dims - 1](plain, kernel, stride, padding, dilation, ceil)
    return pooled if is_plain else pooled.reshape(*x.shape[: -window.dims], *pooled.shape[2:])


def taps(x: Tensor, window: Window, fill: float) -> list[Tensor]:
    """Return the entries of each window, one tensor [..., *outputs] for each place in it; `fill` where it is padded."""
    spare = window.stride if window.ceil else (1,) * window.dims
    around = [(add, add + more - 1) for add, more in zip(window.padding, spare, strict=True)]
    padded = F.pad(x, [size for pair in reversed(around) for size in pair], value=fill)
    first = x.dim() - window.dims
    for axis, (width, step) in enumerate(zip(window.widths, window.stride, strict=True)):
        padded = padded.unfold(first + axis, width, step)  # [..., *outputs, *widths] in the end
    if window.ceil:
        for axis, count in enumerate(window.outputs(x.shape[first:])):
            padded = padded.narrow(first + axis, 0, count)
    found = [padded]
    for gap in window.dilation:
        found = [tap for each in found for tap in each.movedim(x.dim(), 0)[::gap]]
    return found


def _for_each(dims: int, size: Sizes) -> tuple[int, ...]:
    if isinstance(size, int):
        return (size,) * dims
    if len(size) not in (1, dims):
        raise ValueError(f"{list(size)} gives no size for each of {dims} axes; give one number, or {dims}")
    return tuple(size) * (dims if len(size) == 1 else 1)
