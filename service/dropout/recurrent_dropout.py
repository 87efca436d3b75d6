"""Recurrent dropout, of what a cell adds to its memory; it does not know how a step goes on."""

from dataclasses import dataclass

from torch import Tensor

from service.dropout.noise import Shape
from service.dropout.variant import CellVariant, Kind, Place
from service.errors import InvalidPlan


@dataclass(frozen=True)
class RecurrentDropout(CellVariant):
    """Drop what is new, never what is remembered: c_t = f ∘ c_{t-1} + i ∘ (m / q) ∘ g_t (Semeniuta et al. 2016).

    In a GRU, h_t = z ∘ h_{t-1} + (1 - z) ∘ (m / q) ∘ h̃_t. Its closed forms are those of the candidate, g_t or h̃_t.

    Attributes:
        per_step: 1 for a mask at each step, 0 for one for the sequence; the paper has both.
    """

    name = "recurrent-dropout"
    equation = "c_t = f ∘ c_{t-1} + i ∘ (m_t / q) ∘ g_t, m_t ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per unit and step"
    shared = "nothing"
    mean_form = "g"
    variance_form = "g² p / q"
    reference = "Semeniuta et al. 2016, COLING (arXiv 1603.05118)"
    kinds = frozenset({Kind.CELL})
    places = (Place.CANDIDATE,)

    p: float = 0.25
    per_step: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_step not in (0, 1):
            raise InvalidPlan(
                f"{self.name}: per_step = {self.per_step} is no choice; give 1 (each step) or 0 (sequence)"
            )

    @property
    def each_step(self) -> bool:
        """Whether every step has a draw of its own."""
        return self.per_step == 1

    def noise(self, uniform: Tensor, shape: Shape) -> Tensor:
        """Return m / q."""
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
