"""Targeted dropout of weights, its operator and layer; it does not know how many rows share a mask."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, MaskedWeight
from service.errors import InvalidPlan


@dataclass(frozen=True)
class TargetedWeights(MaskedWeight):
    """Drop the smallest weights of each unit: W′ = W ∘ (1 - t ∘ d), d ~ Bernoulli(p) (Gomez et al. 2019).

    t marks each unit's ⌊γ · inputs⌋ smallest |W|. Nothing is rescaled, so the mean is not the network in eval mode,
    which prunes every target.

    Attributes:
        p: The paper's α, the probability of dropping a target.
        gamma: The targeted fraction of each unit's weights, 0 < γ ≤ 1.
    """

    name = "targeted-weights"
    equation = "u = (W ∘ (1 - t ∘ d)) x + b, d ~ Bernoulli(p), t: the γ smallest |W| of each unit"
    sampled = "one Bernoulli(q) per weight"
    shared = "all uses of the parameter; all rows in scope pass"
    mean_form = "(W ∘ (1 - p t)) x + b"
    variance_form = "p q (t ∘ W²) x²"
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
        """Draw 1 - d [S, R, out, in]."""
        return stream.keep(self.q, shape).float()

    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Return the weight [out, in] without the dropped targets."""
        return torch.where(targeted_weights(parameter, self.gamma), parameter * noise, parameter)

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (W ∘ (1 - p t)) x + b."""
        return F.linear(x, weight * (1 - self.p * targeted_weights(weight, self.gamma)), bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return p q (t ∘ W²) x²."""
        return F.linear(x.square(), weight.square() * targeted_weights(weight, self.gamma)) * (self.p * self.q)


def check_gamma(name: str, gamma: float) -> None:
    """Check a targeted fraction.

    Raises:
        InvalidPlan: It is none.
    """
    if not 0 < gamma <= 1:
        raise InvalidPlan(f"{name}: gamma = {gamma} is no fraction to target; give 0 < gamma <= 1")


def targeted_weights(weight: Tensor, gamma: float) -> Tensor:
    """Mark the ⌊γ · inputs⌋ smallest |W| of each unit [out, in]; of equals, the first."""
    rank: Tensor = weight.abs().argsort(dim=-1, stable=True).argsort(dim=-1)
    return rank < int(gamma * weight.shape[-1])


def targeted_units(weight: Tensor, gamma: float) -> Tensor:
    """Mark the ⌊γ · out⌋ units of smallest norm [out, 1]; of equals, the first."""
    rank: Tensor = torch.linalg.vector_norm(weight, dim=-1).argsort(stable=True, dim=0).argsort()
    return (rank < int(gamma * weight.shape[0])).unsqueeze(-1)


def pruned(weight: Tensor, gamma: float, units: bool) -> Tensor:
    """Return a weight without its targets: what the layer is in eval mode."""
    return weight * ~(targeted_units if units else targeted_weights)(weight, gamma)


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, p: float, gamma: float, units: bool, train: bool
) -> Tensor:
    if not train:
        return F.linear(x, pruned(weight, gamma, units), bias)
    targets = (targeted_units if units else targeted_weights)(weight, gamma)
    dropped = targets & (torch.rand(targets.shape, device=weight.device) < p)
    return F.linear(x, weight * ~dropped, bias)


targeted_linear = register(
    "targeted_linear(Tensor x, Tensor weight, Tensor? bias, float p, float gamma, bool units, bool train) -> Tensor",
    _forward,
)


class TargetedLinear(nn.Linear):
    """Train a linear layer for pruning: its targets may be dropped in training, and are all dropped in eval mode.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether there is a bias; it is never dropped.
        p: The paper's α, the probability of dropping a target, 0 ≤ p < 1; one mask serves the whole batch.
        gamma: The targeted fraction, 0 < γ ≤ 1.
        units: Whether whole units are targeted, by their norms, rather than each unit's weights.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = TargetedWeights.p,
        gamma: float = TargetedWeights.gamma,
        units: bool = False,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        variant = TargetedWeights(p, gamma)
        self.p, self.gamma, self.units = variant.p, variant.gamma, units

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to u [*, out]."""
        u: Tensor = targeted_linear(x, self.weight, self.bias, self.p, self.gamma, self.units, self.training)
        return u
