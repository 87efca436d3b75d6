"""DropConnect with exact weight masks, its operator and layer; it does not know how many rows share a mask."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, MaskedWeight, scaled_keep


@dataclass(frozen=True)
class DropConnect(MaskedWeight):
    """Drop single weights and biases: u = (M / q ∘ [W b]) [x; 1], M ~ Bernoulli(q) (Wan et al. 2013).

    The paper trains without 1 / q and scales the mean by q; with W stored as the paper's q W it is the same function.
    """

    name = "dropconnect"
    equation = "u = ((M / q) ∘ [W b]) [x; 1], M ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per weight and bias"
    shared = "all uses of the parameter; all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) (W² x² + b²)"
    reference = "Wan et al. 2013, ICML"
    kinds = frozenset({Kind.WEIGHT, Kind.CONV})  # convolutions: MC-DropConnect (Mobiny et al. 2019)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw M / q [S, R, out, in + biases]."""
        return scaled_keep(stream, self.q, shape)

    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ parameter."""
        return parameter * noise

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (p / q) (W² x² + b²)."""
        return product_variance(x, weight, bias, self.p)


def product_variance(x: Tensor, weight: Tensor, bias: Tensor | None, p: float) -> Tensor:
    """Return the variance (p / q) (W² x² + b²) of u [B, out] under independent masks (Wan et al. 2013, Algorithm 2)."""
    squares = F.linear(x.square(), weight.square(), None if bias is None else bias.square())
    return squares * (p / (1 - p))


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, p: float, sampled: bool, train: bool) -> Tensor:
    if not train:
        return F.linear(x, weight, bias)
    keep = torch.rand(x.shape[:-1] + weight.shape, device=x.device) >= p
    u = torch.einsum("...i,...oi->...o", x, weight * keep) / (1 - p)
    if bias is None:
        return u
    return u + bias * (torch.rand(u.shape, device=x.device) >= p) / (1 - p)


dropconnect_linear = register(
    "dropconnect_linear(Tensor x, Tensor weight, Tensor? bias, float p, bool sampled, bool train) -> Tensor", _forward
)


class DropConnectLinear(nn.Linear):
    """Train a linear layer with a weight mask of its own for each example; the plain layer in eval mode.

    Axes before the last all count as examples in training, as the paper has vectors only; served, one mask per pass
    acts at every position of a row.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether there is a bias; it is masked too.
        p: The probability of dropping a weight, 0 ≤ p < 1.
        sampled: Whether Gaussian sampled inference (Wan et al. 2013, Algorithm 2) serves it, rather than exact masks.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, p: float = DropConnect.p, sampled: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.p = DropConnect(p).p
        self.sampled = sampled

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to u [*, out]."""
        u: Tensor = dropconnect_linear(x, self.weight, self.bias, self.p, self.sampled, self.training)
        return u
