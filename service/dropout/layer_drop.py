"""LayerDrop, its operator and layer; it does not know what the layer that it drops computes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ActivationVariant, Kind


@dataclass(frozen=True)
class LayerDrop(ActivationVariant):
    """Drop a whole residual layer f without rescaling: x + m f(x), m ~ Bernoulli(q) (Fan et al. 2020).

    The branch's mean is q f; the eval network, which keeps every layer, has f itself.
    """

    name = "layer-drop"
    equation = "y = m x, m ~ Bernoulli(q), x a layer's residual branch"
    sampled = "one Bernoulli(q) per branch"
    shared = "all elements of the branch"
    mean_form = "q x"
    variance_form = "p q x²"
    reference = "Fan et al. 2020, ICLR (arXiv 1909.11556)"
    kinds = frozenset({Kind.RESIDUAL, Kind.ADDITION})

    p: float = 0.2

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw m [S, R, 1, …]."""
        return stream.keep(self.q, (1,) * len(shape)).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise · x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return q x."""
        return x * self.q

    def variance(self, x: Tensor) -> Tensor:
        """Return p q x²."""
        return x.square() * (self.p * self.q)


def _forward(x: Tensor, p: float, train: bool) -> Tensor:
    return x * (torch.rand((), device=x.device) >= p) if train else x


layer_drop = register("layer_drop(Tensor x, float p, bool train) -> Tensor", _forward)


class LayerDropPath(nn.Module):
    """Drop a residual branch f(x), for `x + drop(f(x))`, once for a whole batch; the identity in eval mode.

    Args:
        p: The probability of dropping the layer, 0 ≤ p < 1.
    """

    def __init__(self, p: float = LayerDrop.p) -> None:
        super().__init__()
        self.p = LayerDrop(p).p

    def forward(self, x: Tensor) -> Tensor:
        """Return m x in training, x in eval; the shape is kept."""
        y: Tensor = layer_drop(x, self.p, self.training)
        return y
