"""Variational dropout of recurrent layers; it does not know how a step goes on."""

from dataclasses import dataclass

from torch import Tensor

from service.dropout.noise import Shape
from service.dropout.variant import CellVariant, Kind, Place
from service.errors import InvalidPlan


@dataclass(frozen=True)
class VariationalRNN(CellVariant):
    """Drop the same inputs and states at every step: W (z_x ∘ x_t) + U (z_h ∘ h_{t-1}) + b (Gal & Ghahramani 2016).

    Its closed forms are those of what the products take, x_t and h_{t-1}. Directions have masks of their own.

    Attributes:
        per_gate: 0 for one mask for all gates (the paper's tied weights), 1 for a mask for each gate (untied).
    """

    name = "variational-rnn"
    equation = "u_t = W (z_x ∘ x_t) + U (z_h ∘ h_{t-1}) + b, z = m / q, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per input and per unit of a layer"
    shared = "all steps of a sequence"
    mean_form = "x"
    variance_form = "x² p / q"
    reference = "Gal & Ghahramani 2016, NIPS (arXiv 1512.05287)"
    kinds = frozenset({Kind.CELL})
    places = (Place.INPUT, Place.STATE)

    per_gate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_gate not in (0, 1):
            raise InvalidPlan(f"{self.name}: per_gate = {self.per_gate} is no choice; give 0 (tied) or 1 (untied)")

    def widths(self, shape: Shape) -> tuple[int, ...]:
        """Return the columns of x and of h, as many times as there are masks for each."""
        masks = shape[2] if self.per_gate else 1
        return tuple(masks * width for width in super().widths(shape))

    def noise(self, uniform: Tensor, shape: Shape) -> Tensor:
        """Return z = m / q."""
        return (uniform < self.q).float() / self.q

    def expected(self, place: Place) -> float:
        """Return 1: the eval network is the plain layer."""
        return 1.0

    def apply(self, new: Tensor, old: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ new."""
        return new * noise

    def mean(self, new: Tensor, old: Tensor) -> Tensor:
        """Return new."""
        return new

    def variance(self, new: Tensor, old: Tensor) -> Tensor:
        """Return new² p / q."""
        return new.square() * (self.p / self.q)
