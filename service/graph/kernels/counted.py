"""DropConnect whose noise is where its numbers begin, for kernels that make them; it does not know how they do.

Noise is a few words for each pass, and row in row scope, instead of a mask or normals. Triton is imported at first use.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from service.dropout import DropConnect, DropConnectSampled, Variant
from service.dropout.noise import Shape, Stream
from service.graph.bit_masks import NoisyProduct, noisy_product, takes_noise
from service.graph.kernels import unmade
from service.graph.weights import CONVOLUTIONS, LINEAR, Use, WeightSite


@dataclass(frozen=True)
class CountedDropConnect(DropConnect):
    """The masks of `DropConnect`, made inside the product."""

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw coordinates [S, R, 4] as int64, and behind them where ties need it [out] counts."""
        from service.graph.kernels.ties import counted

        numbers = stream.coordinates()
        return torch.unflatten(counted(numbers.flatten(0, 1), self.q, prod(shape), shape[1]), 0, numbers.shape[:2])

    def product(self, use: Use, site: WeightSite) -> "NoisyProduct[CountedDropConnect]":
        """Return what stands for a use of a weight that it masks."""
        return noisy_product(use, site, CountedLinear, self)


@dataclass(frozen=True)
class CountedSampled(DropConnectSampled):
    """The normals of `DropConnectSampled`, made where the passes are written."""

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw coordinates [S, R, 4] as int64."""
        return stream.coordinates()

    def product(self, use: Use, site: WeightSite) -> "NoisyProduct[CountedSampled]":
        """Return what stands for the layer."""
        return noisy_product(use, site, CountedMoments, self)


class CountedLinear(NoisyProduct[CountedDropConnect]):
    """u = (M / q ∘ [W b]) [x; 1]."""

    def __call__(self, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Map x [rows, *, in], or the rows of one pass for all, to u [rows, *, out] by [W b …] [out, in + biases]."""
        from service.graph.kernels.masked import masked_product

        passes = noise.shape[0] if noise.dim() == 3 else 1
        held = passes if len(x) == rows else 1
        inputs = x.reshape(held * noise.shape[-2], -1, x.shape[-1])
        found = masked_product(noise.flatten(0, -2), self.variant.q, inputs, parameters, self.bias)
        return found.reshape(rows, *x.shape[1:-1], -1)


class CountedMoments(NoisyProduct[CountedSampled]):
    """u = W x + b + √((p / q)(W² x² + b²)) ∘ z."""

    narrows = False

    def __call__(self, rows: int, noise: Tensor, x: Tensor, parameters: Tensor) -> Tensor:
        """Map x [rows, in], or the rows of one pass for all, to u [rows, out] by [W b …] [out, in + biases]."""
        from service.graph.kernels.sampled import sampled_product

        passes = noise.shape[0] if noise.dim() == 3 else 1
        numbers, own = noise.flatten(0, -2), rows // passes
        return sampled_product(numbers, self.variant.p, x, parameters, self.bias, own, passes).flatten(0, 1)


def counted_form(site: WeightSite, variant: Variant) -> CountedDropConnect | CountedSampled | str:
    """Return the variant with counted noise where every use of the weight is a layer that takes it; else why none."""
    if type(variant) not in (DropConnect, DropConnectSampled):
        return unmade(variant.name)
    if any(use.node.target in CONVOLUTIONS for use in site.uses):
        return "they serve no weights of convolutions"
    if not takes_noise(site) or any(use.node.target is not LINEAR for use in site.uses):
        return "they serve float32 weights of linear layers, rows on the first axis"
    return CountedDropConnect(variant.p) if type(variant) is DropConnect else CountedSampled(variant.p)
