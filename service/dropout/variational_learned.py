"""The layer that learns the α of variational dropout, A or B, with its operator; it does not know rows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.operator import register
from service.dropout.variational_a import VariationalA, noisy_product
from service.errors import InvalidPlan

_C1, _C2, _C3 = 1.16145124, -1.50204118, 0.58629921


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, logit: Tensor, per_input: bool, train: bool) -> Tensor:
    return noisy_product(x, weight, bias, torch.sigmoid(logit), per_input) if train else F.linear(x, weight, bias)


learned_variational_linear = register(
    "learned_variational_linear(Tensor x, Tensor weight, Tensor? bias, Tensor logit, bool per_input, bool train) "
    "-> Tensor",
    _forward,
)


class LearnedVariationalLinear(nn.Linear):
    """Train a linear layer with variational dropout whose α it learns, one for all weights (Kingma et al. 2015, §3.3).

    α = sigm(a) stays below 1, where the divergence's approximation holds. The plain layer in eval mode. Add `kl` of
    every such layer, over the number of training rows, to the mean loss: without it α falls to 0.

    Args:
        in_features: Size of the last axis of the input.
        out_features: Size of the last axis of the output.
        bias: Whether there is a bias; it has no noise.
        p: The drop probability to start from, 0 < p < 1 / 2; α is p / q.
        per_input: Whether the noise is one draw for each input (type B) rather than one for each unit (type A).
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, p: float = 0.25, per_input: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        if not 0 < VariationalA(p).p < 0.5:
            raise InvalidPlan(f"LearnedVariationalLinear: p = {p} is no rate to learn from; give 0 < p < 0.5")
        self.alpha_logit = nn.Parameter(torch.logit(torch.tensor(p / (1 - p))))
        self.per_input = per_input

    @property
    def alpha(self) -> Tensor:
        """The learned variance of the noise, α = p / q < 1."""
        return torch.sigmoid(self.alpha_logit)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [*, in] to u [*, out]."""
        u: Tensor = learned_variational_linear(
            x, self.weight, self.bias, self.alpha_logit, self.per_input, self.training
        )
        return u

    def kl(self) -> Tensor:
        """Return KL(q ‖ log-uniform prior) ≈ -weights · (½ log α + c₁ α + c₂ α² + c₃ α³), up to a constant (eq. 12)."""
        alpha = self.alpha
        one = 0.5 * F.logsigmoid(self.alpha_logit) + _C1 * alpha + _C2 * alpha**2 + _C3 * alpha**3
        return -one * self.weight.numel()
