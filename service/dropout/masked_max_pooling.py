"""Max pooling with a masked result, its operator and layers; it is not Park & Kwak's max-drop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, PoolVariant
from service.dropout.windows import GEOMETRY, PoolingLayer, Sizes, Window, maximum


@dataclass(frozen=True)
class MaskedMaxPooling(PoolVariant):
    """Drop single outputs of a max-pooling layer: y = m max_i a_i, m ~ Bernoulli(q), and nothing is rescaled.

    A widely read article (Thevenot 2020) gives this form under the name of max-drop. Park & Kwak's own drops the
    one maximum of a whole map, so that the next best wins wherever it is pooled (`max-drop`); Wu & Gu's drops before
    pooling, so that the next best of the window wins (`max-pooling-dropout`). Here a dropped window is 0.
    """

    name = "masked-max-pooling"
    equation = "y = m max_i a_i over each window, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per window"
    shared = "nothing"
    mean_form = "q max a"
    variance_form = "p q (max a)²"
    reference = "Thevenot 2020, 12 Main Dropout Methods (an article)"
    kinds = frozenset({Kind.POOL})
    per_window = True

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, *shape] for the layer's result."""
        return stream.keep(self.q, shape).float()

    def apply(self, x: Tensor, noise: Tensor, window: Window) -> Tensor:
        """Return noise ∘ max a."""
        return maximum(x, window) * noise

    def mean(self, x: Tensor, window: Window) -> Tensor:
        """Return q max a."""
        return self.q * maximum(x, window)

    def variance(self, x: Tensor, window: Window) -> Tensor:
        """Return p q (max a)²."""
        return self.p * self.q * maximum(x, window).square()


def _forward(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool, p: float,
    train: bool,
) -> Tensor:  # fmt: skip
    y = maximum(x, Window.of(len(kernel), kernel, stride, padding, dilation, ceil))
    return y * (torch.rand_like(y) >= p) if train else (1 - p) * y


masked_max_pooling = register(f"masked_max_pooling(Tensor x, {GEOMETRY}, float p, bool train) -> Tensor", _forward)


class MaskedMaxPool2d(PoolingLayer):
    """Train max pooling whose results are dropped; q max a in eval mode.

    Args:
        kernel_size: How many entries a window holds, for all axes or for each.
        stride: How far it moves; the kernel's size if None.
        padding: How many entries are added on either side; they never win.
        dilation: How far apart its entries are.
        ceil_mode: Whether a last window may reach beyond the end.
        p: The probability of dropping a window's result, 0 ≤ p < 1.
    """

    dims = 2

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        p: float = MaskedMaxPooling.p,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.p = MaskedMaxPooling(p).p

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [B, channels, *lengths] to [B, channels, *windows]."""
        self.check(x)
        y: Tensor = masked_max_pooling(x, *self.window.sizes, self.p, self.training)
        return y


class MaskedMaxPool1d(MaskedMaxPool2d):
    """Train with masked max pooling on sequences [B, channels, length]."""

    dims = 1


class MaskedMaxPool3d(MaskedMaxPool2d):
    """Train with masked max pooling on volumes [B, channels, depth, height, width]."""

    dims = 3
