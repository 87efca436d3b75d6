"""Convolutions of a single row, by the operator that several rows get.

For one row and a small image torch falls back to unfolding and a narrow matrix product, which takes up to three times
as long as oneDNN's convolution of the same row. It does not know sites or plans.
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
    """Return what `conv2d` returns for x [B, C, H, W], to rounding."""
    pairs = [tuple(each) * (_PAIR // len(each)) for each in (padding, stride, dilation)]
    if len(x) == 1 and groups == 1 and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        y: Tensor = torch.ops.aten.mkldnn_convolution.default(x, weight, bias, *pairs, groups)
        return y
    return F.conv2d(x, weight, bias, tuple(stride), tuple(padding), tuple(dilation), groups)


def replace_convolutions(module: fx.GraphModule) -> None:
    """Let a graph that runs as it is, not vectorised, take `convolve` for its convolutions of images."""
    if torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call] # torch's
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default):
            node.target = convolve
        module.recompile()
