"""Shakeout, its operator and layer; it does not know how many rows share a draw."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, MaskedWeight, scaled_keep
from service.errors import InvalidPlan


@dataclass(frozen=True)
class Shakeout(MaskedWeight):
    """Enhance or reverse the weights of an input: W′ = r (W + c sign W) - c sign W (Kang et al. 2018).

    r is 0 or 1 / q for each input, so a dropped input's weights become -c sign W; with c = 0 it is dropout of inputs.

    Attributes:
        p: The paper's τ, the probability of r = 0.
        c: The strength of the reversed weights, c ≥ 0.
    """

    name = "shakeout"
    equation = "u = (r ∘ (W + c sign W) - c sign W) x + b, r = m / q, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per input of the layer"
    shared = "all units; all uses of the parameter; all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) (W + c sign W)² x²"
    reference = "Kang et al. 2018, TPAMI (arXiv 1904.06593)"
    kinds = frozenset({Kind.WEIGHT})
    masks_bias = False
    oriented = True

    c: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (isfinite(self.c) and self.c >= 0):
            raise InvalidPlan(f"{self.name}: c = {self.c} is no strength; give a number c >= 0")

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw r [S, R, 1, in]."""
        return scaled_keep(stream, self.q, (1, *shape[1:]))

    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Return r (W + c sign W) - c sign W."""
        reversed_ = self.c * parameter.sign()
        return (parameter + reversed_) * noise - reversed_

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (p / q) (W + c sign W)² x²."""
        return F.linear(x.square(), (weight + self.c * weight.sign()).square()) * (self.p / self.q)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, p: float, c: float, train: bool) -> Tensor:
    if not train:
        return F.linear(x, weight, bias)
    r = (torch.rand_like(x) >= p) / (1 - p)
    return F.linear(r * x, weight, bias) + c * F.linear((r - 1) * x, weight.sign())


shakeout_linear = register(
    "shakeout_linear(Tensor x, Tensor weight, Tensor? bias, float p, float c, bool train) -> Tensor", _forward
)


class ShakeoutLinear(nn.Linear):
    """Train a linear layer with Shakeout, a draw for each example and input; the plain layer in eval mode.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether there is a bias; it has no noise.
        p: The paper's τ, 0 ≤ p < 1.
        c: The strength of the reversed weights, c ≥ 0.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, p: float = Shakeout.p, c: float = Shakeout.c
    ) -> None:
        super().__init__(in_features, out_features, bias)
        variant = Shakeout(p, c)
        self.p, self.c = variant.p, variant.c

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to u [*, out]."""
        u: Tensor = shakeout_linear(x, self.weight, self.bias, self.p, self.c, self.training)
        return u
