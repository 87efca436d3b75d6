"""Products under exact DropConnect masks that stay packed, a bit or a byte each, until they are multiplied.

It does not know plans, or which passes a mask is for, and serves the CPU alone; `kernels` serves other devices with
products of the same form. What it computes is what `MaskColumns`
does, from the same bits: [W b] / q is masked in a buffer that is used again and again.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, fx

from service.dropout import DropConnect, Variant
from service.dropout.noise import Shape, Stream
from service.dropout.variant import WeightVariant
from service.graph.layout import LAYOUT, Layout
from service.graph.nodes import node_operand, operand, value_of
from service.graph.program import STATE_NAME
from service.graph.shapes import BatchAxis
from service.graph.tuned import linear, rectified_linear
from service.graph.weights import CONVOLUTIONS, LINEAR, Use, WeightSite, readers

_ROWS = BatchAxis(0)
Drawn = TypeVar("Drawn", bound=WeightVariant)
_BUFFER_ELEMENTS = 1 << 18  # small layers are masked for several passes at once, up to as many


@dataclass(frozen=True)
class PackedDropConnect(DropConnect):
    """The masks of `DropConnect`, packed: eight to a byte where q is a half, else one."""

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw M as uint8 [S, R, bytes]."""
        if self.q == 0.5:
            return stream.packed_halves(shape)
        return stream.keep(self.q, shape).flatten(2).view(torch.uint8)

    def product(self, use: Use, site: WeightSite) -> "NoisyProduct[PackedDropConnect]":
        """Return what stands for a use of a weight that it masks."""
        return noisy_product(use, site, MaskedLinear if use.node.target is LINEAR else MaskedConvolution, self)

    def unpack(self, packed: Tensor, count: int) -> Tensor:
        """Return M [*, count] as 0 and 1 in uint8."""
        if self.q != 0.5:
            return packed
        return torch.from_numpy(np.unpackbits(packed.numpy(), axis=-1, count=count, bitorder="little"))


@dataclass(frozen=True)
class Layer:
    """A layer's operator, with what it takes beside x, weight and bias."""

    operator: Callable[..., Tensor]
    rest: tuple[Any, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()

    @staticmethod
    def of(node: fx.Node) -> "Layer":
        """Return the layer that a node calls."""
        assert callable(node.target)
        options = tuple((key, value) for key, value in node.kwargs.items() if key not in ("input", "weight", "bias"))
        return Layer(node.target, tuple(node.args[3:]), options)

    @property
    def is_fixed(self) -> bool:
        """Whether nothing in it is computed."""
        return not any(isinstance(each, fx.Node) for each in torch.utils._pytree.tree_leaves((self.rest, self.options)))

    def __call__(self, x: Any, weight: Any, bias: Any) -> Tensor:
        """Call it."""
        return self.operator(x, weight, bias, *self.rest, **dict(self.options))


class NoisyProduct(ABC, Generic[Drawn]):
    """The product of a layer with a noisy weight, for one pass or for several folded into the rows.

    Args:
        variant: What draws the noise: [R, …], or [S, R, …] folded.
        bias: The bias's column of [W b …], where it is noisy.
        layer: The layer's operator, and what it takes behind x, weight and bias.
        shape: The weight's shape.
    """

    batch = _ROWS
    scaled = False  # whether it takes its parameters times 1 / q
    narrows = True  # whether it takes bfloat16 where products run in it

    def __init__(self, variant: Drawn, bias: int | None, layer: Layer, shape: tuple[int, ...]) -> None:
        self.variant, self.bias, self.layer, self.shape = variant, bias, layer, shape
        self.__name__ = "noisy_product"

    @property
    def columns(self) -> int:
        """How many columns are the weight's."""
        return prod(self.shape[1:])

    @abstractmethod
    def __call__(self, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Map x [rows, …], or the rows of one pass for all, to u [rows, …] by [W b …] [out, columns + biases]."""


class MaskedLinear(NoisyProduct[PackedDropConnect]):
    """u = M ∘ [W b] / q [x; 1]; its parameters are scaled already."""

    scaled = True
    rectifies = False

    def rectified(self) -> "MaskedLinear":
        """Return what gives max(u, 0)."""
        other = MaskedLinear(self.variant, self.bias, self.layer, self.shape)
        other.rectifies = True
        return other

    def __call__(self, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Map x [rows, *, in], or the rows of one pass for all, to u [rows, *, out] by [W b …] [out, in + biases]."""
        passes = noise.shape[0] if noise.dim() == 3 else 1
        networks = noise.shape[-2]
        held = passes if len(x) == rows else 1
        inputs = x.reshape(held, networks, -1, x.shape[-1]).expand(passes, -1, -1, -1).flatten(0, 1)
        products = self._products(noise.reshape(passes * networks, -1), inputs, parameters)
        return products.reshape(rows, *x.shape[1:-1], -1)

    def _products(self, packed: Tensor, inputs: Tensor, parameters: Tensor) -> Tensor:
        """Return u [K, T, out] of K networks whose inputs are [K, T, in]."""
        if inputs.shape[1] == 1:  # a product with one vector reads more than it multiplies: bfloat16 would only slow it
            parameters, inputs = parameters.float(), inputs.float()
        together = max(1, min(len(packed), _BUFFER_ELEMENTS // parameters.numel()))
        if together == 1 and inputs.shape[1] > 1:
            return self._one_by_one(packed, inputs, parameters)
        found = self._together(together, packed, inputs.transpose(1, 2), parameters).transpose(1, 2)
        return found.relu_() if self.rectifies else found

    def _one_by_one(self, packed: Tensor, inputs: Tensor, parameters: Tensor) -> Tensor:
        """Return u [K, T, out] by one layer for each network."""
        weight = parameters.new_empty(len(parameters), self.columns)
        found = parameters.new_empty(*inputs.shape[:2], len(parameters))
        layer = rectified_linear if self.rectifies else linear
        for bits, x, u in zip(packed, inputs, found, strict=True):
            mask = self.variant.unpack(bits, parameters.numel()).view(parameters.shape)
            weight.copy_(mask[:, : self.columns]).mul_(parameters[:, : self.columns])
            u.copy_(layer(x, weight, None if self.bias is None else mask[:, self.bias] * parameters[:, self.bias]))
        return found

    def _together(self, together: int, packed: Tensor, inputs: Tensor, parameters: Tensor) -> Tensor:
        """Return u [K, out, T] of inputs [K, in, T], so many networks at once."""
        found = parameters.new_empty(len(packed), len(parameters), inputs.shape[2])
        buffer = parameters.new_empty(together, *parameters.shape)
        for first in range(0, len(packed), together):
            own = packed[first : first + together]
            masked = buffer[: len(own)]
            masked.copy_(self.variant.unpack(own, parameters.numel()).view(masked.shape)).mul_(parameters)
            self._multiply(masked, inputs[first : first + together], found[first : first + together])
        return found

    def _multiply(self, masked: Tensor, inputs: Tensor, found: Tensor) -> None:
        """Write u [G, out, T] of masked parameters [G, out, in + biases] and inputs [G, in, T]."""
        weight = masked[..., : inputs.shape[1]]
        bias, beta = (found, 0) if self.bias is None else (masked[..., self.bias, None], 1)
        if len(masked) > 1:
            torch.baddbmm(bias, weight, inputs, beta=beta, out=found)
        elif inputs.shape[2] > 1:
            torch.addmm(bias[0], weight[0], inputs[0], beta=beta, out=found[0])
        else:
            torch.addmv(bias[0, :, 0], weight[0], inputs[0, :, 0], beta=beta, out=found[0, :, 0])


class MaskedConvolution(NoisyProduct[PackedDropConnect]):
    """u = (M ∘ W / q) * x + m ∘ b / q, one network after the other; its parameters are scaled already."""

    scaled = True

    def __call__(self, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Map x [rows, in, …], or the rows of one pass for all, to u [rows, out, …]; see `NoisyProduct`."""
        passes = noise.shape[0] if noise.dim() == 3 else 1
        networks = noise.shape[-2]
        own = torch.unflatten(x, 0, (passes if len(x) == rows else 1, networks, -1)).expand(
            passes, *[-1] * (x.dim() + 1)
        )
        masked, found = torch.empty_like(parameters), []
        for index, bits in enumerate(noise.reshape(passes * networks, -1)):
            masked.copy_(self.variant.unpack(bits, parameters.numel()).view(masked.shape)).mul_(parameters)
            weight = masked[:, : self.columns].reshape(self.shape)
            bias = None if self.bias is None else masked[:, self.bias].contiguous()
            found.append(self.layer(own[divmod(index, networks)], weight, bias))
        return torch.stack(found).flatten(0, 1)


def join_columns(weight: Tensor, *biases: Tensor, scale: float = 1.0) -> Tensor:
    """Return [W b …] [out, columns + biases], scaled."""
    joined = torch.cat([weight.flatten(1), *(bias[:, None] for bias in biases)], 1)
    return joined if scale == 1 else joined.mul_(scale)


def packed_form(site: WeightSite, variant: Variant) -> PackedDropConnect | str:
    """Return the variant with packed masks where every use of the weight is a layer that takes them; else why none."""
    if type(variant) is not DropConnect:
        return f"{variant.name} has no masks to pack"
    return PackedDropConnect(variant.p) if takes_noise(site) else "packed masks are of layers with rows in front"


def takes_noise(site: WeightSite) -> bool:
    """Tell whether every use of a float32 weight is a layer that a noisy product can stand for."""
    products = {use.node for use in site.uses}
    own = value_of(site.parameter).dtype == torch.float32
    own = own and all(user in products for _, user in readers(site.parameter))
    return own and all(_takes_noise(use, site) for use in site.uses)


def biases_of(site: WeightSite) -> dict[fx.Node, int]:
    """Return the biases that are masked with a weight, in order, and their columns."""
    named = {use.bias.meta[STATE_NAME]: use.bias for use in site.uses if use.bias is not None}
    return {named[name]: column for name, column in site.columns.items()}


def noisy_product(use: Use, site: WeightSite, kind: type[NoisyProduct[Drawn]], variant: Drawn) -> NoisyProduct[Drawn]:
    """Return what stands for a use of a noisy weight."""
    bias = None if use.bias is None else biases_of(site)[use.bias]
    return kind(variant, bias, Layer.of(use.node), tuple(value_of(site.parameter).shape))


def _takes_noise(use: Use, site: WeightSite) -> bool:
    """Tell whether a use is a layer with rows on the first axis and nothing computed in it, any bias of it masked."""
    is_layer = use.node.target is LINEAR or use.node.target in CONVOLUTIONS
    if not is_layer or operand(use.node, 1) is not site.parameter or not Layer.of(use.node).is_fixed:
        return False
    x = node_operand(use.node)
    has_rows = x is not site.parameter and x.meta.get(LAYOUT) == Layout(_ROWS)
    return has_rows and (use.bias is None or use.bias.meta.get(STATE_NAME) in site.columns)
