"""What products run in: TF32 as a rule for the whole device, bfloat16 as casts around the operations that are products.

It does not know plans. A product in bfloat16 takes its float32 operands rounded and sums in float32; its result is
float32 again, so that noise, normalisation, softmax and statistics are what they are anywhere else. Recurrent layers
and products drawn from their moments stay in float32. A variant that chooses by value, such as standout or stochastic
pooling, may choose otherwise where two values are within rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import RLock
from typing import Any

import torch
from torch import Tensor, fx

from service.graph.layout import LAYOUT

aten = torch.ops.aten
FLOAT32, BFLOAT16, TF32 = PRECISIONS = ("float32", "bfloat16", "tf32")
NARROWED = frozenset(
    {
        *(aten.linear.default, aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default),
        *(aten.addmm.default, aten.baddbmm.default, aten.einsum.default, aten.scaled_dot_product_attention.default),
        *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.convolution.default),
        *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
        *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
    }
)
NOTES = {
    BFLOAT16: "linear, convolution, matrix and attention products ran in bfloat16; all else in float32",
    TF32: "linear, convolution, matrix and recurrent products ran in TF32, 10 bits of 23; all else in float32",
}
_ruling = RLock()


def ruled(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Return a context whose float32 products on a GPU are in TF32, or in float32, as asked.

    By itself torch takes TF32 for convolutions and recurrent layers. The rule is the process's, so one holds at a time.
    """
    return nullcontext() if device.type == "cpu" else _rule(precision == TF32)


@contextmanager
def _rule(tf32: bool) -> Iterator[None]:
    products: Any = torch.backends.cuda.matmul
    layers: Any = torch.backends.cudnn
    with _ruling:
        of_products, of_layers = products.fp32_precision, layers.conv.fp32_precision
        sums = products.allow_bf16_reduced_precision_reduction
        products.allow_tf32 = layers.allow_tf32 = tf32  # the old names set the new ones too
        products.allow_bf16_reduced_precision_reduction = False
        try:
            yield
        finally:
            products.allow_bf16_reduced_precision_reduction = sums
            products.allow_tf32, layers.allow_tf32 = of_products == TF32, of_layers == TF32
            products.fp32_precision, layers.conv.fp32_precision = of_products, of_layers


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
