"""Convolutions of images with fixed weights, by whatever operator convolves images of their size soonest.

They give what the plain layers give, to rounding. It does not know graphs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from service.graph.packing import packed
from service.graph.tuned import is_round, round_parts

_SEVERAL = 8  # images that stand for any number of them but one
_FEW = 16  # images up to which any number is run whole: to run few in several parts takes longer
_SIZES_KEPT = 256
_LITTLE, _FEW_WINDOWS = 1 << 21, 1 << 15  # measured: multiplications, and entries of windows, of an image
_NARROW, _LARGE = 3, 1 << 20  # measured: positions in a row of the result, and entries of a weight
_PADDED = 4  # taps for each entry of an image, of which oneDNN leaves out those that find padding
_PART_ENTRIES = 1 << 22  # of windows that are laid out at once
aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """What normalises each channel by fixed statistics; equal where it is of the same tensors.

    Attributes:
        weight: [C], or None for ones.
        bias: [C], or None for zeros.
        mean: [C].
        variance: [C].
        eps: What is added to the variance.
    """

    weight: Tensor | None
    bias: Tensor | None
    mean: Tensor
    variance: Tensor
    eps: float

    def put_into(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the weight [C, …] and the bias [C] of a layer that needs no normalisation behind it."""
        scale = (self.variance.double() + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight.double()
        shift = (0 if bias is None else bias.double()) - self.mean.double()
        added = shift * scale if self.bias is None else shift * scale + self.bias.double()
        return (weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))).to(weight.dtype), added.to(weight.dtype)


class FixedConvolution:
    """A convolution of images with a fixed weight; the channels of its result come last in memory but of a small image.

    To call oneDNN takes longer than to convolve a small image, which torch itself does by a product of its windows. And
    oneDNN reads the whole weight for a row of the result, so that where rows are of two or three and the weight is more
    than a cache, windows are laid out and multiplied all at once. Elsewhere it is quickest. It keeps a program for each
    number of images, a third of a megabyte, and where requests are put together any number comes: what is neither round
    nor small is run as a few round ones. Which way depends on sizes alone, for the same rows are to have the same bits
    whatever was asked before.

    Args:
        weight: [O, I / groups, H, W], float32, in the processor's memory.
        bias: [O].
        geometry: Padding, stride, dilation and groups.
        norm: What normalises the result, where something does.
        rectifies: Whether the result is rectified behind it.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        norm: Norm | None = None,
        rectifies: bool = False,
    ) -> None:
        self.geometry, self.groups, self.rectifies = geometry, geometry[-1], rectifies
        self.bias = bias if norm is None else norm.put_into(weight, bias)[1]
        self._weight, self._norm = weight, norm
        self.__name__ = "fixed_convolution"

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [B, I, H, W] to [B, O, H', W']."""
        if len(x) == 1 and self._is_little(x):
            return self._by_torch(x)
        images = x.contiguous(memory_format=torch.channels_last)
        count = len(images)
        if count > 1 and self._suits_windows(images):
            return self._by_windows(images)
        if count <= _FEW or is_round(count):
            return self._convolved(images)
        return torch.cat([self._convolved(part) for part in torch.split(images, round_parts(count))])

    def _is_little(self, x: Tensor) -> bool:
        """Tell whether an image is sooner convolved by torch's own product of its windows."""
        kernel, (*_, dilation, groups) = self._weight.shape[2:], self.geometry
        is_plain = dilation == (1, 1) and groups == 1 and (x.is_contiguous() or kernel == (1, 1))
        return is_plain and _is_little(self._weight.shape, x.shape[2:], *self.geometry[:3])

    def _by_torch(self, x: Tensor) -> Tensor:
        padding, stride, *_ = self.geometry
        weight = self._weight if self._norm is None else packed(self._weight, ("whole", self._norm), self._whole)
        y: Tensor = aten._slow_conv2d_forward.default(x, weight, weight.shape[2:], self.bias, stride, padding)
        return y.relu_() if self.rectifies else y

    def _suits_windows(self, x: Tensor) -> bool:
        """Tell whether several images are sooner convolved by a product of all their windows."""
        if self.groups != 1 or self._weight.numel() < _LARGE or not 0 < self.size_of(x)[1] <= _NARROW:
            return False
        return prod(self._weight.shape[2:]) <= _PADDED * prod(x.shape[2:])

    def _by_windows(self, images: Tensor) -> Tensor:
        height, width = self.size_of(images)
        matrix: Tensor = packed(self._weight, ("matrix", self._norm), self._matrix)
        y = images.new_empty(len(images), height, width, matrix.shape[1])
        several = max(1, _PART_ENTRIES // max(1, height * width * len(matrix)))
        for some, own in zip(torch.split(images, several), torch.split(y, several), strict=True):
            windows, found = self._laid_out(some, height, width), own.flatten(0, 2)
            if self.bias is None:
                torch.mm(windows, matrix, out=found)
            else:
                torch.addmm(self.bias, windows, matrix, out=found)
        y = y.permute(0, 3, 1, 2)
        return y.relu_() if self.rectifies else y

    def _matrix(self) -> Tensor:
        """Return the weight as windows, their channels last, are multiplied with it [H · W · I, O]."""
        return self._whole().permute(2, 3, 1, 0).flatten(0, 2).contiguous()

    def _laid_out(self, images: Tensor, height: int, width: int) -> Tensor:
        """Return the windows of images, their channels last in memory, one after the other [B · H' · W', H · W · I]."""
        (above, beside), (down, along), (down_inside, along_inside), _ = self.geometry
        x = images.permute(0, 2, 3, 1)
        if above or beside:
            x = F.pad(x, (0, 0, beside, beside, above, above))
        image, row, column, channel = x.stride()
        sizes = len(x), height, width, *self._weight.shape[2:], x.shape[3]
        strides = image, row * down, column * along, row * down_inside, column * along_inside, channel
        return x.as_strided(sizes, strides, x.storage_offset()).reshape(prod(sizes[:3]), prod(sizes[3:]))

    def _convolved(self, images: Tensor) -> Tensor:
        convolution = torch.ops.mkldnn._convolution_pointwise.default
        then = "relu" if self.rectifies else "none"
        y: Tensor = convolution(images, self.packed(images.shape), self.bias, *self.geometry, then, [], "")
        return y

    def packed(self, shape: Sequence[int]) -> Tensor:
        """Return the weight as images [B, I, H, W] of a size take it, one image by itself or several.

        oneDNN may choose another algorithm for these, or for another number of threads, and to put a weight into
        another layout takes it up to hundreds of times as long as the convolution.
        """
        size = [1 if shape[0] == 1 else _SEVERAL, *shape[1:]]
        use = self.geometry, self._norm, *size, torch.get_num_threads()
        own: Tensor = packed(self._weight, use, lambda: self._pack_for(size))
        return own

    @property
    def taps(self) -> Tensor:
        """The weight by its channels of a single group [I, H · W, O]."""
        taps: Tensor = packed(
            self._weight, ("taps", self._norm), lambda: self._whole().flatten(2).permute(1, 2, 0).contiguous()
        )
        return taps

    def windows(self, x: Tensor) -> Tensor:
        """Return what the taps are multiplied with [I, H · W, H' · W'] of one image x [1, I, …]."""
        padding, stride, dilation, _ = self.geometry
        unfolded = F.unfold(x.contiguous(), self._weight.shape[2:], dilation, padding, stride)[0]
        return torch.unflatten(unfolded, 0, tuple(self.taps.shape[:2]))

    def size_of(self, x: Tensor) -> tuple[int, int]:
        """Return H' and W' of x [B, I, …]."""
        return _size(x.shape[2:], self._weight.shape[2:], *self.geometry[:3])

    def _whole(self) -> Tensor:
        """Return the weight with the normalisation behind it put in."""
        return self._weight if self._norm is None else self._norm.put_into(self._weight, None)[0]

    def _pack_for(self, size: list[int]) -> Tensor:
        own: Tensor = torch.ops.mkldnn._reorder_convolution_weight.default(self._whole(), *self.geometry, size)
        return own


@lru_cache(maxsize=_SIZES_KEPT)
def _is_little(weight: Sequence[int], lengths: Sequence[int], *geometry: Sequence[int]) -> bool:
    """Tell whether an image of these lengths is small beside what oneDNN's call takes, for a weight [O, I, H, W]."""
    outputs, *window = weight
    entries = prod(window) * prod(_size(lengths, window[1:], *geometry))
    return entries <= _FEW_WINDOWS and entries * outputs <= _LITTLE


def _size(lengths: Sequence[int], kernel: Sequence[int], *geometry: Sequence[int]) -> tuple[int, int]:
    """Return the lengths of what a convolution makes, for its padding, stride and dilation."""
    each = zip(lengths, kernel, *geometry, strict=True)
    height, width = ((own + 2 * pad - hop * (taps - 1) - 1) // step + 1 for own, taps, pad, step, hop in each)
    return height, width
