"""Variational dropout, type A, its operator and layer; it does not know which rows come together."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.operator import register
from service.dropout.variant import Kind, SampledProduct
from service.errors import InvalidPlan


@dataclass(frozen=True)
class VariationalA(SampledProduct):
    """Give each weight N(1, α) noise through its unit: u ~ N(W x + b, α W² x²), α = p / q (Kingma et al. 2015, §3.1).

    The paper keeps α ≤ 1, that is p ≤ 1 / 2, in training; the bias has no noise. `variational-b` has one draw for each
    input, and so units that covary.
    """

    name = "variational-a"
    equation = "u = W x + b + √(α W² x²) ∘ z, z ~ N(0, 1), α = p / q"
    sampled = "one N(0, 1) per unit"
    shared = "all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) W² x²"
    reference = "Kingma et al. 2015, NIPS (arXiv 1506.02557)"
    kinds = frozenset({Kind.WEIGHT})

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def spread(self, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return α W² and 0."""
        return weight.square() * (self.p / self.q), weight.new_zeros(len(weight))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, p: float, per_input: bool, train: bool) -> Tensor:
    return noisy_product(x, weight, bias, x.new_tensor(p / (1 - p)), per_input) if train else F.linear(x, weight, bias)


def noisy_product(x: Tensor, weight: Tensor, bias: Tensor | None, alpha: Tensor, per_input: bool) -> Tensor:
    """Return u [*, out] with noise of variance α: one draw for each input (type B), or for each unit (type A)."""
    if per_input:
        return F.linear(x * (1 + alpha.sqrt() * torch.randn_like(x)), weight, bias)
    u = F.linear(x, weight, bias)
    spread = F.linear(x.square(), weight.square()) * alpha
    return u + (spread + torch.finfo(u.dtype).tiny).sqrt() * torch.randn_like(u)  # √ has no gradient at 0


variational_linear = register(
    "variational_linear(Tensor x, Tensor weight, Tensor? bias, float p, bool per_input, bool train) -> Tensor", _forward
)


class VariationalLinear(nn.Linear):
    """Train a linear layer with variational dropout of a fixed α = p / q; the plain layer in eval mode.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether there is a bias; it has no noise.
        p: The drop probability α / (1 + α), 0 ≤ p ≤ 1 / 2, so that α ≤ 1 as in the paper.
        per_input: Whether the noise is one draw for each input (type B) rather than one for each unit (type A).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = VariationalA.p,
        per_input: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.p = VariationalA(p).p
        if p > 0.5:
            raise InvalidPlan(f"VariationalLinear: p = {p} makes α = p / q larger than 1; give p <= 0.5")
        self.per_input = per_input

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to u [*, out]."""
        u: Tensor = variational_linear(x, self.weight, self.bias, self.p, self.per_input, self.training)
        return u
