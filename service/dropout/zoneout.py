"""Zoneout; it does not know how a step goes on."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.dropout.noise import Shape
from service.dropout.variant import CellVariant, Kind, Place
from service.errors import InvalidPlan


@dataclass(frozen=True)
class Zoneout(CellVariant):
    """Let units keep the values of the step before: h_t = z ∘ h_{t-1} + (1 - z) ∘ h̃_t (Krueger et al. 2017).

    An LSTM's c_t has the rate p and its h_t the rate p_h; h̃_t is read from the new cell state before any of it is kept
    back. A GRU has the rate p alone. Nothing is rescaled; the eval network has the rates in the places of z.

    Attributes:
        p: The probability that a unit of c_t, or of a GRU's h_t, keeps its old value.
        p_h: The same of an LSTM's h_t.
    """

    name = "zoneout"
    equation = "h_t = z ∘ h_{t-1} + (1 - z) ∘ h̃_t, z ~ Bernoulli(p); c_t likewise"
    sampled = "one Bernoulli(p) per unit and step, of c_t and of h_t"
    shared = "nothing"
    mean_form = "p h + q h̃"
    variance_form = "p q (h̃ - h)²"
    reference = "Krueger et al. 2017, ICLR (arXiv 1606.01305)"
    kinds = frozenset({Kind.CELL})
    places = (Place.MEMORY, Place.OUTPUT)
    neutral = 0.0

    p_h: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.p_h < 1:
            raise InvalidPlan(f"{self.name}: p_h = {self.p_h} is not a probability of keeping back; give 0 <= p_h < 1")

    @property
    def active(self) -> bool:
        """Whether it changes anything."""
        return self.p > 0 or self.p_h > 0

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether it acts in such cells: a GRU has no use for p_h."""
        is_lost = self.p == 0 < self.p_h and shape[2:3] == (3,)
        return super().fits(kind, shape) and not is_lost

    @property
    def each_step(self) -> bool:
        """Whether every step has a draw of its own: always."""
        return True

    def noise(self, uniform: Tensor, shape: Shape) -> Tensor:
        """Return z, those of c (a GRU's h) before those of h."""
        carried, given = torch.split(uniform, list(self.widths(shape)), -1)
        return torch.cat([carried < self.p, given < self.p_h], -1).float()

    def expected(self, place: Place) -> float:
        """Return the rate at a place."""
        return self.p if place is Place.MEMORY else self.p_h

    def apply(self, new: Tensor, old: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ old + (1 - noise) ∘ new."""
        return noise * old + (1 - noise) * new

    def mean(self, new: Tensor, old: Tensor) -> Tensor:
        """Return p old + q new."""
        return self.p * old + self.q * new

    def variance(self, new: Tensor, old: Tensor) -> Tensor:
        """Return p q (new - old)²."""
        return (new - old).square() * (self.p * self.q)
