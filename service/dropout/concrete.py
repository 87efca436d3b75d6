"""Concrete dropout, its operators and layers, whose rates are learned; it does not know which layer it follows."""

from dataclasses import dataclass
from math import inf, log
from typing import ClassVar

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ELEMENTWISE, HIDDEN, ActivationVariant, Kind, shared_after_first
from service.errors import InvalidPlan

_LEAST_T, _MOST_T = 1e-3, 100.0
_REACH = 40  # |logit u| beyond which no float64 has weight


@dataclass(frozen=True)
class Concrete(ActivationVariant):
    """Weaken single elements by relaxed Bernoulli noise of a learned rate (Gal, Hron & Kendall 2017).

    With every site off the layer is the identity: z is 1 at rate 0, and other variants in its place have the mean x.
    `bernoulli` at the same site and rate is the limit t → 0.

    Attributes:
        t: The temperature, > 0.
    """

    name = "concrete"
    equation = "y = (z / q) ∘ x, z = 1 - sigm((logit p + logit u) / t), u ~ U(0, 1)"
    sampled = "one U(0, 1) per element"
    shared = "nothing"
    mean_form = "x E z / q"
    variance_form = "x² Var z / q²"
    reference = "Gal et al. 2017, NIPS (arXiv 1705.07832)"
    kinds = ELEMENTWISE
    scales = True

    p: float = 0.1
    t: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not _LEAST_T <= self.t <= _MOST_T:
            raise InvalidPlan(
                f"{self.name}: t = {self.t} is not a temperature that can be served; give {_LEAST_T} <= t <= {_MOST_T}"
            )

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw z / q [S, R, *shape]."""
        return (self._relaxed(torch.logit(stream.uniform(shape))) / self.q).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x E z / q."""
        return x * (self._moment(1) / self.q)

    def variance(self, x: Tensor) -> Tensor:
        """Return x² Var z / q²."""
        return x.square() * (max(0.0, self._moment(2) - self._moment(1) ** 2) / self.q**2)

    def _relaxed(self, logit_u: Tensor) -> Tensor:
        return torch.sigmoid(-(logit(self.p) + logit_u) / self.t)

    def _moment(self, power: int) -> float:
        """Return E z^power by the trapezoidal rule over v = logit u, whose density is sigm(v) sigm(-v)."""
        step = min(self.t, 1.0) / 4
        count = int(_REACH / step)
        v = torch.arange(-count, count + 1, dtype=torch.float64) * step
        return float((self._relaxed(v).pow(power) * v.sigmoid() * (-v).sigmoid()).sum() * step)


@dataclass(frozen=True)
class SpatialConcrete(Concrete):
    """Weaken whole channels by relaxed Bernoulli noise of a learned rate (Gal, Hron & Kendall 2017)."""

    name = "spatial-concrete"
    equation = "y_c = (z_c / q) x_c, z_c = 1 - sigm((logit p + logit u_c) / t), u_c ~ U(0, 1)"
    sampled = "one U(0, 1) per channel"
    shared = "all positions of a channel"
    mean_form = "x E z_c / q"
    variance_form = "x² Var z_c / q²"
    kinds = HIDDEN | {Kind.ACTIVATION, Kind.RECURRENT}
    per_channel = True

    t: float = 2 / 3

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether there are channels with positions to share over."""
        return super().fits(kind, shape) and len(shape) >= 2

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw z / q [S, R, C, 1, …]."""
        return super().draw(stream, shared_after_first(shape))


def logit(p: float) -> float:
    """Return log(p / (1 - p)); -∞ at 0."""
    return log(p) - log(1 - p) if p else -inf


def _forward(x: Tensor, p_logit: Tensor, t: float, channels: bool, train: bool) -> Tensor:
    if not train:
        return x
    shape = (*x.shape[:2], *[1] * (x.dim() - 2)) if channels else x.shape
    u = torch.rand(shape, device=x.device, dtype=x.dtype).clamp(1e-7, 1 - 1e-7)
    return x * torch.sigmoid(-(p_logit + torch.logit(u)) / t) / torch.sigmoid(-p_logit)


concrete_dropout = register(
    "concrete_dropout(Tensor x, Tensor p_logit, float t, bool channels, bool train) -> Tensor", _forward
)


class ConcreteDropout(nn.Module):
    """Train with concrete dropout in front of a weight layer, its rate learned; the identity in eval mode.

    Add `regulariser` of every such layer to the loss: without it the rate has no reason to stay above 0.

    Args:
        p: The drop probability to start from, 0 < p < 1.
        t: The temperature of the relaxation; None takes the paper's.
    """

    variant: ClassVar[type[Concrete]] = Concrete

    def __init__(self, p: float = Concrete.p, t: float | None = None) -> None:
        super().__init__()
        known = self.variant(p, self.variant.t if t is None else t)
        if known.p == 0:
            raise InvalidPlan(f"{known.name}: a rate of 0 cannot be learned from; give 0 < p < 1")
        self.t = known.t
        self.p_logit = nn.Parameter(torch.tensor(logit(known.p)))

    @property
    def p(self) -> Tensor:
        """The learned drop probability."""
        return torch.sigmoid(self.p_logit)

    def forward(self, x: Tensor) -> Tensor:
        """Return (z / q) ∘ x in training, x in eval; the shape is kept."""
        y: Tensor = concrete_dropout(x, self.p_logit, self.t, self.variant.per_channel, self.training)
        return y

    def regulariser(self, layer: nn.Module, weight_scale: float, dropout_scale: float) -> Tensor:
        """Return this layer's term of the loss: weight_scale ‖W‖² / q - dropout_scale · K · H(p).

        Args:
            layer: The weight layer that follows; K is its number of input features or channels.
            weight_scale: l² / (τ N), with l the prior's length scale and N the number of training rows.
            dropout_scale: 2 / (τ N) for a mean squared error, 1 / (τ N) for a cross entropy.
        """
        weight = layer.get_parameter("weight")
        squares = torch.stack([each.square().sum() for each in layer.parameters()]).sum()
        p = self.p
        negative_entropy = p * p.log() + (1 - p) * (1 - p).log()
        return weight_scale * squares / (1 - p) + dropout_scale * weight.shape[1] * negative_entropy


class SpatialConcreteDropout(ConcreteDropout):
    """Train with concrete dropout of whole channels [B, C, …]; the identity in eval mode."""

    variant = SpatialConcrete

    def __init__(self, p: float = SpatialConcrete.p, t: float | None = None) -> None:
        super().__init__(p, t)
