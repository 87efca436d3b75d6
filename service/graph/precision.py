"""Products in bfloat16: which operations they are, and how their operands and results are cast.

It does not know plans. A product takes its float32 operands rounded to bfloat16 and sums in float32; its result is
float32 again, so that noise, normalisation, softmax and statistics are what they are anywhere else. Recurrent layers
and products drawn from their moments stay in float32. A variant that chooses by value, such as standout or stochastic
pooling, may choose otherwise where two values are within rounding.
"""

from collections.abc import Callable

import torch
from torch import Tensor, fx

from service.graph.layout import LAYOUT

aten = torch.ops.aten
FLOAT32, BFLOAT16 = PRECISIONS = ("float32", "bfloat16")
NARROWED = frozenset(
    {
        *(aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default),
        *(aten.addmm.default, aten.baddbmm.default, aten.einsum.default, aten.scaled_dot_product_attention.default),
        *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default),
        *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
        *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
    }
)
NOTE = "linear, convolution, matrix and attention products ran in bfloat16; all else in float32"


def narrow(x: Tensor) -> Tensor:
    """Return a float32 tensor in bfloat16, any other as it is."""
    return x.bfloat16() if x.dtype == torch.float32 else x


def widen(x: Tensor) -> Tensor:
    """Return a bfloat16 tensor in float32, any other as it is."""
    return x.float() if x.dtype == torch.bfloat16 else x


class Narrower:
    """Write products in bfloat16 into a graph; what several of them take is rounded once."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.narrowed: dict[fx.Node, fx.Node] = {}

    def product(self, node: fx.Node, operand: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """Copy a product from another graph, `operand` being what stands here for a node there."""
        return self.widened(self.graph.node_copy(node, lambda old: self.operand(operand(old))))

    def operand(self, wide: fx.Node) -> fx.Node:
        """Return a value rounded."""
        if wide not in self.narrowed:
            self.narrowed[wide] = self.graph.call_function(narrow, (wide,))
            self.narrowed[wide].meta = {LAYOUT: wide.meta[LAYOUT]} if LAYOUT in wide.meta else {}
        return self.narrowed[wide]

    def widened(self, product: fx.Node) -> fx.Node:
        """Return a product's result in float32."""
        wide = self.graph.call_function(widen, (product,))
        wide.meta = dict(product.meta)
        return wide
