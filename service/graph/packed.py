"""Convolutions of few rows with their weights already in the order that the processor takes them.

torch puts a convolution's weight in that order at every call, which with few rows takes longer than the convolution.
It does not know plans; packed weights are shared by all plans of a network.
"""

from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import Tensor, fx
from torch.utils.weak import WeakIdKeyDictionary

from service.graph.nodes import node_operand, operand

_ONE, _NONE = [1, 1], [0, 0]
_PACKED: WeakIdKeyDictionary = WeakIdKeyDictionary()  # parameter → its packed form


class PackedConvolution:
    """A two-dimensional convolution with a weight that never changes.

    Args:
        weight: The weight [O, C, height, width].
        stride: How far its window moves.
        padding: How many zeros are added on either side.
        dilation: How far apart the window's entries are.
    """

    __name__ = "packed_convolution"

    def __init__(self, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]) -> None:
        self.stride, self.padding, self.dilation = list(stride), list(padding), list(dilation)
        if weight not in _PACKED:
            _PACKED[weight] = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg] # its stub is old
                weight.detach().to_mkldnn(), self.padding, self.stride, self.dilation, 1, None
            )
        self.packed: Tensor = _PACKED[weight]

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve x [B, C, H, W]."""
        if x.numel() > weight.numel() or not x.is_contiguous():
            return torch.conv2d(x, weight, bias, self.stride, self.padding, self.dilation)
        found: Tensor = torch.ops.mkldnn._convolution_pointwise.default(
            x, self.packed, bias, self.padding, self.stride, self.dilation, 1, "none", [], ""
        )
        return found.contiguous()


def pack_convolutions(module: fx.GraphModule) -> None:
    """Let a graph's plain convolutions of images take packed weights, where this processor has them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call] # torch's own
        return
    for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.conv2d.default):
        source = node_operand(node, 1)
        weight = attrgetter(str(source.target))(module) if source.op == "get_attr" else None
        if weight is not None and _is_plain(weight) and operand(node, 6, 1) == 1:
            given = (node_operand(node), source, operand(node, 2))
            sizes = operand(node, 3, _ONE), operand(node, 4, _NONE), operand(node, 5, _ONE)
            node.target = PackedConvolution(weight, *sizes)
            node.args, node.kwargs = given, {}
    module.recompile()


def _is_plain(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
