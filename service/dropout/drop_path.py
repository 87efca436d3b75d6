"""DropPath, also called stochastic depth; it does not know what the branch computes."""

from dataclasses import dataclass

from torch import Tensor

from service.dropout.noise import Shape, Stream
from service.dropout.variant import ActivationVariant, Kind, scaled_keep


@dataclass(frozen=True)
class DropPath(ActivationVariant):
    """Drop whole residual branches: y = (b / q) f(x), b ~ Bernoulli(q) (Huang et al. 2016)."""

    name = "drop-path"
    equation = "y = (b / q) x, b ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per branch"
    shared = "all elements of the branch"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Huang et al. 2016, ECCV (arXiv 1603.09382)"
    kinds = frozenset({Kind.RESIDUAL, Kind.ADDITION})

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw b / q [S, R, 1, …]."""
        return scaled_keep(stream, self.q, (1,) * len(shape))

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Return noise · x."""
        return x * noise

    def mean(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def variance(self, x: Tensor) -> Tensor:
        """Return x² p / q."""
        return x.square() * (self.p / self.q)
