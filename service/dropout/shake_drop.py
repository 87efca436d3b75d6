"""ShakeDrop, its operator and layer; it does not know what the branch that it shakes computes."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import ActivationVariant, Kind


@dataclass(frozen=True)
class ShakeDrop(ActivationVariant):
    """Shake a residual branch f: x + (b + α - b α) f(x), b ~ Bernoulli(q), α ~ U(-1, 1) (Yamada et al. 2018).

    The eval network has q f, the mean. Here x is that q f, so the factor is over q; it is the same function.
    """

    name = "shake-drop"
    equation = "y = ((b + α - b α) / q) x, b ~ Bernoulli(q), α ~ U(-1, 1), x a branch scaled for eval"
    sampled = "one Bernoulli(q) and one U(-1, 1) per branch"
    shared = "all elements of the branch"
    mean_form = "x"
    variance_form = "x² (q + p / 3 - q²) / q²"
    reference = "Yamada et al. 2018, IEEE Access (arXiv 1802.02375)"
    kinds = frozenset({Kind.RESIDUAL})

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw (b + α - b α) / q [S, R, 1, …]."""
        one = (1,) * len(shape)
        alpha = 2 * stream.uniform(one, part="alpha") - 1
        return (torch.where(stream.keep(self.q, one), 1.0, alpha) / self.q).float()

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise · x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² (q + p / 3 - q²) / q²."""
        return x.square() * ((self.q + self.p / 3 - self.q**2) / self.q**2)


def _forward(x: Tensor, p: float, train: bool) -> Tensor:
    """Scale by b + α - b α, and gradients by b + β - b β with β ~ U(0, 1); b is the batch's, α and β each row's."""
    if not train:
        return x * (1 - p)
    shape = (x.shape[0], *[1] * (x.dim() - 1))
    kept = torch.rand((), device=x.device) >= p
    forward = torch.where(kept, 1.0, 2 * torch.rand(shape, device=x.device, dtype=x.dtype) - 1)
    backward = torch.where(kept, 1.0, torch.rand(shape, device=x.device, dtype=x.dtype))
    return x * backward + (x * (forward - backward)).detach()


shake_drop = register("shake_drop(Tensor x, float p, bool train) -> Tensor", _forward)


class ShakeDropPath(nn.Module):
    """Shake a residual branch f(x), for `x + shake(f(x))`; a factor of q in eval mode.

    Args:
        p: The probability of shaking the branch, 0 ≤ p < 1.
    """

    def __init__(self, p: float = ShakeDrop.p) -> None:
        super().__init__()
        self.p = ShakeDrop(p).p

    def forward(self, x: Tensor) -> Tensor:
        """Return (b + α - b α) x in training, q x in eval; the shape is kept."""
        y: Tensor = shake_drop(x, self.p, self.training)
        return y
