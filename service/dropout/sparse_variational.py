"""Sparse variational dropout, whose noise is learned weight by weight, its operator and layer; it knows no rows."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, MaskedWeight, SampledProduct

_REACH = 8.0  # log α is kept within ±8
_PRUNED_ABOVE = 3.0  # log α beyond which eval mode takes a weight to be 0
_K1, _K2, _K3 = 0.63576, 1.8732, 1.48695
_FRESH_LOG_VARIANCE = -10.0
_LEAST_SQUARE = 1e-16


@dataclass(frozen=True)
class SparseVariational(SampledProduct):
    """Give each weight N(0, σ²) noise of its own, learned size through its unit (Molchanov et al. 2017, §4).

    Passes keep every weight's mean; the network in eval mode prunes those of log α = log σ² / W² > 3. The bias has no
    noise. As in the authors' code, log α is kept within ±8.
    """

    name = "sparse-variational"
    equation = "u = W x + b + √(σ² x²) ∘ z, z ~ N(0, 1), σ² learned for each weight"
    sampled = "one N(0, 1) per unit"
    shared = "all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "σ² x²"
    reference = "Molchanov et al. 2017, ICML (arXiv 1701.05369)"
    kinds = frozenset({Kind.SPARSE_WEIGHT})
    rated = False
    learned = True

    p: float = field(default=0.0, init=False, repr=False)

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def spread(self, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> tuple[Tensor, Tensor]:
        """Return σ², given log σ² [out, in], and 0."""
        (log_variance,) = learned
        return weight_variance(weight, log_variance), weight.new_zeros(len(weight))


@dataclass(frozen=True)
class SparseVariationalJoint(MaskedWeight):
    """Give each weight N(0, σ²) noise of learned size: u = (W + σ ∘ ε) x + b (Molchanov et al. 2017, §4).

    The network that `sparse-variational` has the moments of: positions and rows that share a pass share its weights.
    """

    name = "sparse-variational-joint"
    equation = "u = (W + σ ∘ ε) x + b, ε ~ N(0, 1), σ² learned for each weight"
    sampled = "one N(0, 1) per weight"
    shared = "all uses of the parameter; all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "σ² x²"
    reference = "Molchanov et al. 2017, ICML (arXiv 1701.05369)"
    kinds = frozenset({Kind.SPARSE_WEIGHT})
    rated = False
    learned = True
    masks_bias = False
    before_pruning = True

    p: float = field(default=0.0, init=False, repr=False)

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw ε [S, R, out, in]."""
        return stream.normal(shape).float()

    def apply(self, parameter: Tensor, noise: Tensor, *learned: Tensor) -> Tensor:
        """Return W + σ ∘ ε, given log σ² [out, in]."""
        (log_variance,) = learned
        return parameter + weight_variance(parameter, log_variance).sqrt() * noise

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return W x + b."""
        return F.linear(x, weight, bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None, *learned: Tensor) -> Tensor:
        """Return σ² x², given log σ² [out, in]."""
        (log_variance,) = learned
        return F.linear(x.square(), weight_variance(weight, log_variance))


def weight_variance(weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return σ² [out, in], log σ² / W² being kept within ±8."""
    square, reach = weight.square(), torch.tensor(_REACH, dtype=weight.dtype, device=weight.device).exp()
    return torch.minimum(torch.maximum(log_variance.exp(), square / reach), square * reach)


def log_alpha(weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return log α = log σ² / W² [out, in], kept within ±8."""
    return (log_variance - (weight.square() + _LEAST_SQUARE).log()).clamp(-_REACH, _REACH)


def without_noisy_weights(weight: Tensor, log_variance: Tensor) -> Tensor:
    """Return a weight without those of log α > 3: what the layer is in eval mode."""
    return weight * (log_alpha(weight, log_variance) <= _PRUNED_ABOVE)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, log_variance: Tensor, train: bool) -> Tensor:
    if not train:
        return F.linear(x, without_noisy_weights(weight, log_variance), bias)
    u = F.linear(x, weight, bias)
    spread = F.linear(x.square(), weight_variance(weight, log_variance))
    return u + (spread + torch.finfo(u.dtype).tiny).sqrt() * torch.randn_like(u)  # √ has no gradient at 0


sparse_variational_linear = register(
    "sparse_variational_linear(Tensor x, Tensor weight, Tensor? bias, Tensor log_variance, bool train) -> Tensor",
    _forward,
)


class SparseVariationalLinear(nn.Linear):
    """Train a linear layer that learns how noisy each weight may be; in eval mode the noisy ones are pruned.

    Add `kl` of every such layer, over the number of training rows, to the mean loss: it makes weights noisy. Axes
    before the last all count as examples in training; served, a pass has one network for every position of a row.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether there is a bias; it has no noise.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self.log_variance = nn.Parameter(torch.full_like(self.weight, _FRESH_LOG_VARIANCE))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to u [*, out]."""
        u: Tensor = sparse_variational_linear(x, self.weight, self.bias, self.log_variance, self.training)
        return u

    @property
    def log_alpha(self) -> Tensor:
        """How noisy each weight is, log σ² / W² [out, in], within ±8; above 3 eval mode prunes it."""
        return log_alpha(self.weight, self.log_variance)

    def kl(self) -> Tensor:
        """Return KL(q ‖ log-uniform prior) ≈ -Σ k₁ sigm(k₂ + k₃ log α) - ½ log(1 + 1 / α) - k₁ (Molchanov, eq. 14)."""
        alpha = self.log_alpha
        return -(_K1 * torch.sigmoid(_K2 + _K3 * alpha) - 0.5 * F.softplus(-alpha) - _K1).sum()
