"""Layers of fixed weights by oneDNN, with what follows them done in the same pass over memory.

The weight is put into oneDNN's own layout once, the normalisation behind a convolution is put into its weight, and what
is still in the cache is rectified. They give what the plain layers give, to rounding. It does not know sites or plans.
For these operators torch has no vectorised form, so graphs that are vectorised stay as they are.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from service.graph.nodes import float_operand, is_tensor, node_operand, only_user, operand, value_of
from service.graph.products import ScaledLinear
from service.graph.tuned import (
    HAS_ONEDNN,
    IMAGES,
    is_round,
    linear,
    loosen_views,
    pair,
    rectified_linear,
    round_parts,
    suits_onednn,
    tune,
)

_SEVERAL = 8  # images that stand for any number of them but one
_MOST_PACKED = 16  # forms of a weight that are kept: images of several sizes may come
aten = torch.ops.aten
_FEW = 16  # images up to which any number is run whole: to run few in several parts takes longer
_SIZES_KEPT = 256
_LITTLE, _FEW_WINDOWS = 1 << 21, 1 << 15  # measured: multiplications, and entries of windows, of an image
_packed: Any = WeakTensorKeyDictionary()  # weight → {how it is used: the packed form}; all plans share it


class FixedLinear:
    """x Wᵀ + b of a fixed weight.

    Args:
        weight: W [O, I], float32, in the processor's memory.
        rectifies: Whether the result is rectified.
    """

    def __init__(self, weight: Tensor, rectifies: bool = False) -> None:
        self.rectifies = rectifies
        self.packed = _pack(weight, "linear", lambda: torch.ops.mkldnn._reorder_linear_weight.default(weight, None))
        self.__name__ = "fixed_linear"

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if not suits_onednn(x, weight):
            return (rectified_linear if self.rectifies else linear)(x, weight, bias)
        then = "relu" if self.rectifies else "none"
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, bias, then, [], "")
        return product


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

    To call oneDNN takes longer than to convolve a small image, which torch itself does by a product of its windows.
    oneDNN keeps a program for each number of images, a third of a megabyte, and where requests are put together any
    number comes: what is neither round nor small is run as a few round ones. That depends on the number alone, for
    the same rows are to have the same bits whatever was asked before.

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
        if len(x) == 1 and self._suits_product(x):
            return self._product(x)
        images = x.contiguous(memory_format=torch.channels_last)
        count = len(images)
        if count <= _FEW or is_round(count):
            return self._convolved(images)
        return torch.cat([self._convolved(part) for part in torch.split(images, round_parts(count))])

    def _suits_product(self, x: Tensor) -> bool:
        """Tell whether an image is sooner convolved by torch's own product of its windows, which it lays out."""
        kernel, (*_, dilation, groups) = self._weight.shape[2:], self.geometry
        is_plain = dilation == (1, 1) and groups == 1 and (x.is_contiguous() or kernel == (1, 1))
        return is_plain and _is_little(self._weight.shape, x.shape[2:], *self.geometry[:3])

    def _product(self, x: Tensor) -> Tensor:
        padding, stride, *_ = self.geometry
        weight = self._weight if self._norm is None else _pack(self._weight, ("whole", self._norm), self._whole)
        y: Tensor = aten._slow_conv2d_forward.default(x, weight, weight.shape[2:], self.bias, stride, padding)
        return y.relu_() if self.rectifies else y

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
        packed: Tensor = _pack(self._weight, use, lambda: self._pack_for(size))
        return packed

    @property
    def taps(self) -> Tensor:
        """The weight by its channels of a single group [I, H · W, O]."""
        taps: Tensor = _pack(
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
        packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight.default(self._whole(), *self.geometry, size)
        return packed


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


def _pack(weight: Tensor, use: Hashable, pack: Callable[[], Any]) -> Any:
    made = _packed.setdefault(weight, {})
    if use not in made:
        while len(made) >= _MOST_PACKED:
            made.pop(next(iter(made)))
        with torch.inference_mode():
            made[use] = pack()
    return made[use]


def fix_weights(module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph, never to be vectorised, whose layers of fixed weights are of this module's kind."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    writer = _Writer(module, graph)
    for node in list(graph.nodes) if HAS_ONEDNN else ():
        if node.target is aten.linear.default:
            writer.linear(node)
        elif type(node.target) is ScaledLinear:
            writer.scaled_linear(node)
        elif node.target is aten.conv2d.default:
            writer.convolution(node)
    graph.eliminate_dead_code()
    fixed = fx.GraphModule(module, graph)
    tune(fixed)
    loosen_views(fixed)
    return fixed


class _Writer:
    def __init__(self, module: fx.GraphModule, graph: fx.Graph) -> None:
        self.module, self.graph = module, graph

    def linear(self, node: fx.Node) -> None:
        weight = self._fixed(operand(node, 1))
        if weight is not None:
            node.target = FixedLinear(weight, self._takes_rectifier(node))

    def scaled_linear(self, node: fx.Node) -> None:
        weight = self._fixed(operand(node, 3))
        if weight is not None:
            assert isinstance(node.target, ScaledLinear)
            rectifies = self._takes_rectifier(node)
            node.target = ScaledLinear(node.target.apply, FixedLinear(weight, rectifies), rectifies)

    def convolution(self, node: fx.Node) -> None:
        """Write a convolution with the normalisation and the rectifier that alone read it, each if there is one."""
        weight, bias = self._fixed(operand(node, 1)), self._fixed(operand(node, 2))
        is_of_images = is_tensor(node) and value_of(node).dim() == IMAGES
        if weight is None or not is_of_images or (bias is None and operand(node, 2) is not None):
            return
        pairs = [pair(operand(node, index, default)) for index, default in ((4, [0]), (3, [1]), (5, [1]))]
        behind = only_user(node, aten.batch_norm.default)
        norm = self._norm(behind) if behind else None
        self._drop(behind if norm else None)
        geometry = *pairs, operand(node, 6, 1)
        node.target = FixedConvolution(weight, bias, geometry, norm, self._takes_rectifier(node))
        node.args, node.kwargs = (node_operand(node),), {}

    def _norm(self, node: fx.Node) -> Norm | None:
        given = [operand(node, index) for index in range(1, 5)]
        weight, bias, mean, variance = values = [self._fixed(each) for each in given]
        is_fixed = all((own is None) == (node is None) for own, node in zip(values, given, strict=True))
        if operand(node, 5) is not False or not is_fixed or mean is None or variance is None:
            return None
        return Norm(weight, bias, mean, variance, float_operand(node, 7))

    def _fixed(self, node: Any) -> Tensor | None:
        """Return the tensor of a node that is one, float32 and in the processor's memory."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        value = attrgetter(str(node.target))(self.module)
        is_plain = isinstance(value, Tensor) and value.dtype == torch.float32 and value.device.type == "cpu"
        return value if is_plain else None

    def _takes_rectifier(self, node: fx.Node) -> bool:
        """Take out the rectifier that alone reads a value, and tell whether there was one."""
        rectifier = only_user(node, aten.relu.default)
        self._drop(rectifier)
        return rectifier is not None

    def _drop(self, node: fx.Node | None) -> None:
        if node is not None:
            node.replace_all_uses_with(node_operand(node))
            self.graph.erase_node(node)
