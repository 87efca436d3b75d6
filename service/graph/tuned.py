"""Operators called in the form that torch runs fastest; they give what the plain ones give, to rounding.

It does not know sites or plans. For one row and a small image torch's convolution unfolds the image and takes a narrow
matrix product, and for a value whose axes stand in another order its linear layer takes a product for each entry of the
first axis. Both take longer than the operator that it chooses for other inputs.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.nn import functional as F

_PAIR = 2


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
    pairs = [tuple(each) * (_PAIR // len(each)) for each in (padding, stride, dilation)]
    if len(x) == 1 and groups == 1 and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        y: Tensor = torch.ops.aten.mkldnn_convolution.default(x, weight, bias, *pairs, groups)
        return y
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `linear` returns for x [..., I]: as one product."""
    return F.linear(x if x.dim() <= _PAIR else x.contiguous(), weight, bias)


def tune_linears(module: fx.GraphModule) -> None:
    """Let a graph take `linear` for its linear layers."""
    _replace(module, torch.ops.aten.linear.default, linear)


def tune_convolutions(module: fx.GraphModule) -> None:
    """Let a graph that is never vectorised take `convolve` for its convolutions of images."""
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call] # torch's
        _replace(module, torch.ops.aten.conv2d.default, convolve)


def _replace(module: fx.GraphModule, plain: torch._ops.OpOverload, tuned: fx.node.Target) -> None:
    for node in module.graph.find_nodes(op="call_function", target=plain):
        node.target = tuned
    module.recompile()
