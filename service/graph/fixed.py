"""Layers of fixed weights by oneDNN, with what follows them done in the same pass over memory.

The weight is put into oneDNN's own layout once, the normalisation behind a convolution is put into its weight, and what
is still in the cache is rectified. They give what the plain layers give, to rounding. It does not know sites or plans.
For these operators torch has no vectorised form, so graphs that are vectorised stay as they are.
"""

from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx

from service.graph.convolution import FixedConvolution, Norm
from service.graph.nodes import float_operand, is_tensor, node_operand, only_user, operand, value_of
from service.graph.packing import packed
from service.graph.products import ScaledLinear
from service.graph.tuned import (
    HAS_ONEDNN,
    IMAGES,
    linear,
    loosen_views,
    pair,
    rectified_linear,
    suits_onednn,
    tune,
)

aten = torch.ops.aten


class FixedLinear:
    """x Wᵀ + b of a fixed weight.

    Args:
        weight: W [O, I], float32, in the processor's memory.
        rectifies: Whether the result is rectified.
    """

    def __init__(self, weight: Tensor, rectifies: bool = False) -> None:
        self.rectifies = rectifies
        self.packed = packed(weight, "linear", lambda: torch.ops.mkldnn._reorder_linear_weight.default(weight, None))
        self.__name__ = "fixed_linear"

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map x [..., I] to [..., O]."""
        if not suits_onednn(x, weight):
            return (rectified_linear if self.rectifies else linear)(x, weight, bias)
        then = "relu" if self.rectifies else "none"
        product: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, self.packed, bias, then, [], "")
        return product


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
