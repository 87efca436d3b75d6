"""Linear products under exact DropConnect masks that stay packed, a bit or a byte each, until they are multiplied.

It does not know plans, or which passes a mask is for, and serves the CPU alone. What it computes is what `MaskColumns`
does, from the same bits: [W b] is masked in a buffer that is used again and again, and 1 / q scales the product instead
of the weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx

from service.dropout import DropConnect, Variant
from service.dropout.noise import Shape, Stream
from service.graph.layout import LAYOUT, Layout
from service.graph.nodes import node_operand, value_of
from service.graph.program import STATE_NAME
from service.graph.shapes import BatchAxis
from service.graph.weights import LINEAR, Use, WeightSite, readers

_ROWS = BatchAxis(0)
_BUFFER_ELEMENTS = 1 << 18  # small layers are masked for several passes at once, up to as many


@dataclass(frozen=True)
class PackedDropConnect(DropConnect):
    """The masks of `DropConnect`, packed: eight to a byte where q is a half, else one."""

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw M as uint8 [S, R, bytes]."""
        if self.q == 0.5:
            return stream.packed_halves(shape)
        return stream.keep(self.q, shape).flatten(2).view(torch.uint8)

    def unpack(self, packed: Tensor, count: int) -> Tensor:
        """Return M [*, count] as 0 and 1 in uint8."""
        if self.q != 0.5:
            return packed
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=count, bitorder="little"))


class MaskedProduct:
    """u = (M / q ∘ [W b]) [x; 1] for each pass, with its mask packed as [R, bytes], or [S, R, bytes] folded.

    Args:
        masks: What the masks are.
        bias: The bias's column of the mask, where there is one.
    """

    batch = _ROWS

    def __init__(self, masks: PackedDropConnect, bias: int | None) -> None:
        self.masks, self.bias = masks, bias
        self.__name__ = "masked_product"

    def __call__(self, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Map x [rows, *, in], or the rows of one pass for all, to u [rows, *, out] by [W b …] [out, in + biases]."""
        passes = noise.shape[0] if noise.dim() == 3 else 1
        networks = noise.shape[-2]
        held = passes if len(x) == rows else 1
        inputs = x.reshape(held, networks, -1, x.shape[-1]).expand(passes, -1, -1, -1).flatten(0, 1)
        products = self._products(noise.reshape(passes * networks, -1), inputs.transpose(1, 2), parameters)
        return products.transpose(1, 2).reshape(rows, *x.shape[1:-1], -1)

    def _products(self, packed: Tensor, inputs: Tensor, parameters: Tensor) -> Tensor:
        """Return u [K, out, T] of K networks whose inputs are [K, in, T]."""
        if inputs.shape[2] == 1:  # a product with one vector reads more than it multiplies: bfloat16 would only slow it
            parameters, inputs = parameters.float(), inputs.float()
        together = max(1, min(len(packed), _BUFFER_ELEMENTS // parameters.numel()))
        found = parameters.new_empty(len(packed), len(parameters), inputs.shape[2])
        buffer = parameters.new_empty(together, *parameters.shape)
        for first in range(0, len(packed), together):
            own = packed[first : first + together]
            masked = buffer[: len(own)]
            masked.copy_(self.masks.unpack(own, parameters.numel()).view(masked.shape)).mul_(parameters)
            self._multiply(masked, inputs[first : first + together], found[first : first + together])
        return found

    def _multiply(self, masked: Tensor, inputs: Tensor, found: Tensor) -> None:
        """Write u [G, out, T] of masked parameters [G, out, in + biases] and inputs [G, in, T]."""
        scale = 1 / self.masks.q
        weight = masked[..., : inputs.shape[1]]
        bias = found if self.bias is None else masked[..., self.bias, None]
        beta = 0 if self.bias is None else scale
        if len(masked) > 1:
            torch.baddbmm(bias, weight, inputs, beta=beta, alpha=scale, out=found)
        elif inputs.shape[2] > 1:
            torch.addmm(bias[0], weight[0], inputs[0], beta=beta, alpha=scale, out=found[0])
        else:
            torch.addmv(bias[0, :, 0], weight[0], inputs[0, :, 0], beta=beta, alpha=scale, out=found[0, :, 0])


def join_columns(weight: Tensor, *biases: Tensor) -> Tensor:
    """Return [W b …] [out, in + biases]."""
    return torch.cat([weight, *(bias[:, None] for bias in biases)], 1)


def packed_form(site: WeightSite, variant: Variant) -> PackedDropConnect | None:
    """Return the variant with packed masks where every use of the weight is a product that can take them."""
    plain = type(variant) is DropConnect and value_of(site.parameter).dtype == torch.float32
    products = {use.node for use in site.uses}
    if not plain or any(user not in products for _, user in readers(site.parameter)):
        return None
    return PackedDropConnect(variant.p) if all(_takes_masks(use, site) for use in site.uses) else None


def biases_of(site: WeightSite) -> dict[fx.Node, int]:
    """Return the biases that are masked with a weight, in order, and their columns."""
    named = {use.bias.meta[STATE_NAME]: use.bias for use in site.uses if use.bias is not None}
    return {named[name]: column for name, column in site.columns.items()}


def _takes_masks(use: Use, site: WeightSite) -> bool:
    """Tell whether a use is x Wᵀ + b of rows on the first axis, and its bias masked if there is one."""
    if use.node.target is not LINEAR or node_operand(use.node, 1) is not site.parameter:
        return False
    x = node_operand(use.node)
    has_rows = x is not site.parameter and x.meta.get(LAYOUT) == Layout(_ROWS)
    return has_rows and (use.bias is None or use.bias.meta.get(STATE_NAME) in site.columns)
