"""Max-pooling dropout, its operator and layers; it does not know which activation function comes before."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, PoolVariant
from service.dropout.windows import GEOMETRY, PoolingLayer, Sizes, Window, maximum, taps

_NOWHERE = float("-inf")  # what padding adds, by a layer or by hand: no input, so nothing to drop


@dataclass(frozen=True)
class MaxPoolingDropout(PoolVariant):
    """Drop single inputs of a max-pooling layer: y = max_i m_i a_i, m_i ~ Bernoulli(q) (Wu & Gu 2015).

    Nothing is rescaled, as the winner would be. With a₍₁₎ ≤ … ≤ a₍ₙ₎ the inputs of a window, none negative, a₍ᵢ₎ wins
    with probability q pⁿ⁻ⁱ and 0 with pⁿ. Windows that overlap share the masks of their common inputs. A dropped input
    is 0 and beats negative ones, so the closed forms count those as 0, save that the largest stands where all of a
    window is negative and kept: probability qⁿ.
    """

    name = "max-pooling-dropout"
    equation = "y = max_i m_i a_i over each window, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per element of the layer's input"
    shared = "nothing"
    mean_form = "Σ q pⁿ⁻ⁱ a₍ᵢ₎, a ≥ 0"
    variance_form = "Σ q pⁿ⁻ⁱ a₍ᵢ₎² - (Σ q pⁿ⁻ⁱ a₍ᵢ₎)², a ≥ 0"
    reference = "Wu & Gu 2015, Neural Networks 71 (arXiv 1512.00242)"
    kinds = frozenset({Kind.POOL})

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, *shape] for the layer's input."""
        return stream.keep(self.q, shape).float()

    def apply(self, x: Tensor, noise: Tensor, window: Window) -> Tensor:
        """Return the maximum of noise ∘ x in each window."""
        return maximum(torch.where(x == _NOWHERE, x, x * noise), window)

    def mean(self, x: Tensor, window: Window) -> Tensor:
        """Return Σ q pⁿ⁻ⁱ a₍ᵢ₎, the paper's probabilistic weighted pooling."""
        return self._moment(x, window, 1)

    def variance(self, x: Tensor, window: Window) -> Tensor:
        """Return Σ q pⁿ⁻ⁱ a₍ᵢ₎² - mean²."""
        return self._moment(x, window, 2) - self.mean(x, window).square()

    def _moment(self, x: Tensor, window: Window, power: int) -> Tensor:
        falling = torch.stack(taps(x, window, _NOWHERE), -1).sort(dim=-1, descending=True).values
        places = torch.arange(falling.shape[-1], device=x.device, dtype=x.dtype)
        won = falling.clamp_min(0).pow(power) * (self.q * self.p**places)
        inputs = (falling != _NOWHERE).sum(-1)
        return won.sum(-1) + torch.pow(self.q, inputs) * falling[..., 0].clamp_max(0).pow(power)


def _forward(
    x: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], ceil: bool, p: float,
    train: bool,
) -> Tensor:  # fmt: skip
    window = Window.of(len(kernel), kernel, stride, padding, dilation, ceil)
    variant = MaxPoolingDropout(p)
    return variant.apply(x, (torch.rand_like(x) >= p).to(x.dtype), window) if train else variant.mean(x, window)


max_pooling_dropout = register(f"max_pooling_dropout(Tensor x, {GEOMETRY}, float p, bool train) -> Tensor", _forward)


class MaxPoolDropout2d(PoolingLayer):
    """Train max pooling on inputs that are dropped; probabilistic weighted pooling in eval mode.

    Args:
        kernel_size: How many entries a window holds, for all axes or for each.
        stride: How far it moves; the kernel's size if None.
        padding: How many entries are added on either side; they never win.
        dilation: How far apart its entries are.
        ceil_mode: Whether a last window may reach beyond the end.
        p: The probability of dropping an input, 0 ≤ p < 1.
    """

    dims = 2

    def __init__(
        self,
        kernel_size: Sizes,
        stride: Sizes | None = None,
        padding: Sizes = 0,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        p: float = MaxPoolingDropout.p,
    ) -> None:
        super().__init__(kernel_size, stride, padding, dilation, ceil_mode)
        self.p = MaxPoolingDropout(p).p

    def forward(self, x: Tensor) -> Tensor:
        """Pool x [B, channels, *lengths] to [B, channels, *windows]."""
        self.check(x)
        y: Tensor = max_pooling_dropout(x, *self.window.sizes, self.p, self.training)
        return y


class MaxPoolDropout1d(MaxPoolDropout2d):
    """Train with max-pooling dropout on sequences [B, channels, length]."""

    dims = 1


class MaxPoolDropout3d(MaxPoolDropout2d):
    """Train with max-pooling dropout on volumes [B, channels, depth, height, width]."""

    dims = 3
