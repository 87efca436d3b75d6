"""Shake-Shake, its operator and layer; it does not know what the two branches compute."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, PairedVariant


@dataclass(frozen=True)
class ShakeShake(PairedVariant):
    """Mix two residual branches by chance: y = α f₁ + (1 - α) f₂, α ~ U(0, 1) (Gastaldi 2017)."""

    name = "shake-shake"
    equation = "y = α f₁ + (1 - α) f₂, α ~ U(0, 1)"
    sampled = "one U(0, 1) per pair of branches"
    shared = "all elements of the branch"
    mean_form = "(f₁ + f₂) / 2"
    variance_form = "(f₁ - f₂)² / 12"
    reference = "Gastaldi 2017, ICLR workshop (arXiv 1705.07485)"
    kinds = frozenset({Kind.BRANCHES})
    rated = False

    p: float = field(default=0.0, init=False, repr=False)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw α [S, R, 1, …]."""
        return stream.uniform((1,) * len(shape)).float()

    def off(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (f₁ + f₂) / 2."""
        return (first + second) / 2

    def apply(self, first: Tensor, second: Tensor, noise: Tensor) -> Tensor:
        """Return α f₁ + (1 - α) f₂."""
        return noise * first + (1 - noise) * second

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (f₁ + f₂) / 2."""
        return (first + second) / 2

    def variance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (f₁ - f₂)² / 12."""
        return (first - second).square() / 12


def _forward(first: Tensor, second: Tensor, train: bool) -> Tensor:
    """Mix by α, and gradients by β ~ U(0, 1); each row has its own."""
    if not train:
        return (first + second) / 2
    shape = (first.shape[0], *[1] * (first.dim() - 1))
    alpha, beta = (torch.rand(shape, device=first.device, dtype=first.dtype) for _ in range(2))
    return beta * first + (1 - beta) * second + ((alpha - beta) * (first - second)).detach()


shake_shake = register("shake_shake(Tensor first, Tensor second, bool train) -> Tensor", _forward)


class ShakeShakeMix(nn.Module):
    """Mix two residual branches, for `x + mix(f1(x), f2(x))`; their mean in eval mode."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return α f₁ + (1 - α) f₂ in training, (f₁ + f₂) / 2 in eval; both have one shape."""
        y: Tensor = shake_shake(first, second, self.training)
        return y
