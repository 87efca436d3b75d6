"""RNNDrop; it does not know how a step goes on."""

from dataclasses import dataclass

from torch import Tensor

from service.dropout.noise import Shape
from service.dropout.variant import CellVariant, Kind, Place


@dataclass(frozen=True)
class RNNDrop(CellVariant):
    """Drop an LSTM's cell state, the same units at every step: c_t = m ∘ (f ∘ c_{t-1} + i ∘ g) (Moon et al. 2015).

    Nothing is rescaled; the eval network has q in the place of m. A GRU has no cell state.
    """

    name = "rnn-drop"
    equation = "c_t = m ∘ c̃_t, c̃_t = f ∘ c_{t-1} + i ∘ g, m ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per unit of a layer"
    shared = "all steps of a sequence"
    mean_form = "q c̃"
    variance_form = "p q c̃²"
    reference = "Moon et al. 2015, ASRU"
    kinds = frozenset({Kind.CELL})
    places = (Place.CELL,)

    def fits(self, kind: Kind, shape: Shape) -> bool:
        """Tell whether it is an LSTM's layer: one of four gates."""
        return super().fits(kind, shape) and shape[2:3] != (3,)

    def noise(self, uniform: Tensor, shape: Shape) -> Tensor:
        """Return m."""
        return (uniform < self.q).float()

    def expected(self, place: Place) -> float:
        """Return q."""
        return self.q

    def apply(self, new: Tensor, old: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ new."""
        return new * noise

    def mean(self, new: Tensor, old: Tensor) -> Tensor:
        """Return q new."""
        return new * self.q

    def variance(self, new: Tensor, old: Tensor) -> Tensor:
        """Return p q new²."""
        return new.square() * (self.p * self.q)
