"""Stochastic pooling, its operator and layers; it does not know which activation function comes before."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, PoolVariant
from service.dropout.windows import GEOMETRY, PoolingLayer, Window, taps


@dataclass(frozen=True)
class StochasticPooling(PoolVariant):
    """Draw one input of each window by its size: y = a_l, P(l = i) = a_i / Σ a (Zeiler & Fergus 2013).

    As in the paper activations are not negative: a stands for max(a, 0), so a negative input is never drawn, and a
    window without a positive one gives 0.
    """

    name = "stochastic-pooling"
    equation = "y = a_l over each window, P(l = i) = a_i / Σ a"
    sampled = "one input of each window"
    shared = "nothing"
    mean_form = "Σ a² / Σ a"
    variance_form = "Σ a³ / Σ a - (Σ a² / Σ a)²"
    reference = "Zeiler & Fergus 2013, ICLR (arXiv 1301.3557)"
    kinds = frozenset({Kind.POOL})
    rated = False
    per_window = True

    p: float = field(default=0.0, init=False, repr=False)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw u ~ U(0, 1) [S, R, *shape] for the layer's result; the input that Σ a passes u Σ a at is drawn."""
        return stream.uniform(shape).float()

    def apply(self, x: Tensor, noise: Tensor, window: Window) -> Tensor:
        """Return the input that u falls on in each window."""
        inputs = taps(x.clamp_min(0), window, 0.0)
        total = _sum(inputs)
        mark, below = noise * total, torch.zeros_like(total)
        y = torch.zeros_like(mark) * total  # not a number where an input is none
        for a in inputs:
            y = torch.where((a > 0) & (below <= mark), a, y)
            below = below + a
        return y

    def mean(self, x: Tensor, window: Window) -> Tensor:
        """Return Σ a² / Σ a, the paper's weighted pooling; 0 where Σ a is."""
        return self._moment(x, window, 1)

    def variance(self, x: Tensor, window: Window) -> Tensor:
        """Return Σ a³ / Σ a - mean²."""
        return self._moment(x, window, 2) - self.mean(x, window).square()

    def _moment(self, x: Tensor, window: Window, power: int) -> Tensor:
        inputs = taps(x.clamp_min(0), window, 0.0)
        total = _sum(inputs)
        return _sum([a.pow(power + 1) for a in inputs]) / torch.where(total == 0, 1, total)


def _sum(tensors: list[Tensor]) -> Tensor:
    first, *rest = tensors
    for each in rest:
        first = first + each
    return first


def _forward(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool, train: bool
) -> Tensor:
    window, variant = Window.of(len(kernel), kernel, stride, padding, dilation, ceil), StochasticPooling()
    if not train:
        return variant.mean(x, window)
    shape = (*x.shape[: -window.dims], *window.outputs(x.shape[-window.dims :]))
    return variant.apply(x, torch.rand(shape, device=x.device, dtype=x.dtype), window)


stochastic_pooling = register(f"stochastic_pooling(Tensor x, {GEOMETRY}, bool train) -> Tensor", _forward)


class StochasticPool2d(PoolingLayer):
    """Train with stochastic pooling; the paper's probability-weighted mean in eval mode.

    Args:
        kernel_size: How many entries a window holds, for all axes or for each.
        stride: How far it moves; the kernel's size if None.
        padding: How many entries are added on either side; they are never drawn.
        dilation: How far apart its entries are.
        ceil_mode: Whether a last window may reach beyond the end.
    """

    dims = 2

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [B, channels, *lengths] to [B, channels, *windows]."""
        self.check(x)
        y: Tensor = stochastic_pooling(x, *self.window.sizes, self.training)
        return y


class StochasticPool1d(StochasticPool2d):
    """Train with stochastic pooling on sequences [B, channels, length]."""

    dims = 1


class StochasticPool3d(StochasticPool2d):
    """Train with stochastic pooling on volumes [B, channels, depth, height, width]."""

    dims = 3
