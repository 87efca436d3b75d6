"""Standout, its operator and layers; it does not know which activation function lies between u and a."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, PairedVariant


@dataclass(frozen=True)
class Standout(PairedVariant):
    """Keep single units by their own pre-activations: y = m ∘ a, m ~ Bernoulli(π), π = sigm(α u + β) (Ba & Frey 2013).

    π is the probability of keeping: strongly active units are kept more. Nothing is rescaled; the eval network has the
    mean π ∘ a. As in the paper's experiments the standout network's weights are α times the layer's own, plus β.

    Attributes:
        alpha: How much stronger units are kept more.
        beta: How much is kept of a unit whose u is 0: sigm(β).
    """

    name = "standout"
    equation = "y = m ∘ a, m ~ Bernoulli(π), π = sigm(α u + β), a = g(u)"
    sampled = "one Bernoulli(π) per element"
    shared = "nothing"
    mean_form = "π a"
    variance_form = "π (1 - π) a²"
    reference = "Ba & Frey 2013, NIPS"
    kinds = frozenset({Kind.GATED})
    rated = False

    p: float = field(default=0.0, init=False, repr=False)
    alpha: float = 0.5
    beta: float = 1.0

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw v ~ U(0, 1) [S, R, *shape]; a unit is kept where v < π."""
        return stream.uniform(shape).float()

    def off(self, first: Tensor, second: Tensor) -> Tensor:
        """Return π ∘ a of u and a."""
        return self.kept(first) * second

    def apply(self, first: Tensor, second: Tensor, noise: Tensor) -> Tensor:
        """Return m ∘ a of u and a."""
        return second * (noise < self.kept(first))

    def mean(self, first: Tensor, second: Tensor) -> Tensor:
        """Return π a of u and a."""
        return self.kept(first) * second

    def variance(self, first: Tensor, second: Tensor) -> Tensor:
        """Return π (1 - π) a² of u and a."""
        kept = self.kept(first)
        return kept * (1 - kept) * second.square()

    def kept(self, u: Tensor) -> Tensor:
        """Return the probability of keeping, π = sigm(α u + β)."""
        return torch.sigmoid(self.alpha * u + self.beta)


def _forward(u: Tensor, a: Tensor, alpha: float, beta: float, train: bool) -> Tensor:
    kept = torch.sigmoid(alpha * u + beta)
    return a * (torch.rand_like(kept) < kept) if train else kept * a


standout = register("standout(Tensor u, Tensor a, float alpha, float beta, bool train) -> Tensor", _forward)


class StandoutGate(nn.Module):
    """Train with standout on activations a = g(u), given both; π ∘ a in eval mode.

    Args:
        alpha: Factor of u in sigm(α u + β).
        beta: Offset in it.
    """

    def __init__(self, alpha: float = Standout.alpha, beta: float = Standout.beta) -> None:
        super().__init__()
        known = Standout(alpha, beta)
        self.alpha, self.beta = known.alpha, known.beta

    def forward(self, u: Tensor, a: Tensor) -> Tensor:
        """Return m ∘ a in training, π ∘ a in eval; u and a have one shape."""
        y: Tensor = standout(u, a, self.alpha, self.beta, self.training)
        return y


class StandoutLinear(nn.Linear):
    """Train a linear layer and its activation function with standout; π ∘ g(u) in eval mode.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        activation: The activation function g, which leaves its argument alone.
        alpha: Factor of u in sigm(α u + β).
        beta: Offset in it.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        alpha: float = Standout.alpha,
        beta: float = Standout.beta,
    ) -> None:
        super().__init__(in_features, out_features)
        self.activation = activation
        self.standout = StandoutGate(alpha, beta)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to m ∘ g(u) [*, out]."""
        u = super().forward(x)
        y: Tensor = self.standout(u, self.activation(u))
        return y
