"""Operators called in the form that torch runs fastest; they give what the plain ones give, to rounding.

It does not know sites or plans. For one row and a small image torch's convolution unfolds the image and takes a narrow
matrix product, and for a value whose axes stand in another order its linear layer takes a product for each entry of the
first axis. Both take longer than the operator that it chooses for other inputs, and many of oneDNN's products take
less time than those that torch takes by default. None of this can be vectorised.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional as F

LEAST = 1 << 19  # multiplications of a product from which on oneDNN's call is worth what it costs
_ROUND = (1, 3, 5, 25)  # times a power of two: numbers of rows that come again and again
HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # torch's
_PAIR = 2
aten = torch.ops.aten


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return what `conv2d` returns for x [B, C, H, W]: by oneDNN for one row too."""
    stride, padding, dilation = (pair(each) for each in (stride, padding, dilation))
    if len(x) == 1 and groups == 1 and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        y: Tensor = aten.mkldnn_convolution.default(x, weight, bias, padding, stride, dilation, groups)
        return y
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `linear` returns for x [..., I]: as one product, by oneDNN where that is worth it."""
    if x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and suits_onednn(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return y
    return F.linear(x if x.dim() <= _PAIR else x.contiguous(), weight, bias)


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether x [..., I] times a weight [O, I] is a product that oneDNN should take.

    It makes a program for each number of rows and keeps a thousand of them, half a megabyte each, and where requests
    are put together as they come, any number comes.
    """
    if not HAS_ONEDNN or x.numel() * len(weight) < LEAST:
        return False
    rows = x.numel() // x.shape[-1]
    return rows // (rows & -rows) in _ROUND


def pair(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of two axes, one size serving both."""
    return tuple(sizes) * (_PAIR // len(sizes))


def tune(module: fx.GraphModule) -> None:
    """Let a graph that is never vectorised take these operators."""
    if HAS_ONEDNN:
        _replace(module, aten.conv2d.default, convolve)
    _replace(module, aten.linear.default, linear)


def loosen_views(module: fx.GraphModule) -> None:
    """Let a graph reshape values in any order of memory where it would take a view of some order alone."""
    _replace(module, aten.view.default, aten.reshape.default)


def _replace(module: fx.GraphModule, plain: torch._ops.OpOverload, tuned: fx.node.Target) -> None:
    nodes = module.graph.find_nodes(op="call_function", target=plain)
    for node in nodes:
        node.target = tuned
    if nodes:
        module.recompile()
