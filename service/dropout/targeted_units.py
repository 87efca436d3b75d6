"""Targeted dropout of units; its layer stands beside that of weights."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.targeted_weights import check_gamma, targeted_units
from service.dropout.variant import Kind, MaskedWeight


@dataclass(frozen=True)
class TargetedUnits(MaskedWeight):
    """Drop the weights of the smallest units: W′_o = (1 - t_o d_o) W_o, d ~ Bernoulli(p) (Gomez et al. 2019).

    t marks the ⌊γ · units⌋ units whose weights have the smallest norm; a dropped unit keeps its bias. Nothing is
    rescaled, so the mean is not the network in eval mode, which prunes every target.

    Attributes:
        p: The paper's α, the probability of dropping a target.
        gamma: The targeted fraction of units, 0 < γ ≤ 1.
    """

    name = "targeted-units"
    equation = "u = (1 - t ∘ d) ∘ W x + b, d ~ Bernoulli(p), t: the γ units of smallest norm"
    sampled = "one Bernoulli(q) per unit"
    shared = "all weights of a unit; all uses of the parameter; all rows in scope pass"
    mean_form = "(1 - p t) ∘ W x + b"
    variance_form = "p q t ∘ (W x)²"
    reference = "Gomez et al. 2019, arXiv 1905.13678"
    kinds = frozenset({Kind.WEIGHT, Kind.CONV})
    masks_bias = False
    oriented = True
    before_pruning = True

    gamma: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gamma(self.name, self.gamma)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw 1 - d [S, R, out, 1]."""
        return stream.keep(self.q, (shape[0], 1)).float()

    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Return the weight [out, in] without the dropped units."""
        return torch.where(targeted_units(parameter, self.gamma), parameter * noise, parameter)

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (1 - p t) ∘ W x + b."""
        return F.linear(x, weight * (1 - self.p * targeted_units(weight, self.gamma)), bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return p q t ∘ (W x)²."""
        return F.linear(x, weight * targeted_units(weight, self.gamma)).square() * (self.p * self.q)
