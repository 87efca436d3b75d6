"""The answer to a prediction, as NumPy arrays; it does not know how it travelled."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
ByOutput = Mapping[str, Array]


@dataclass(frozen=True)
class Prediction:
    """The statistics of N stochastic passes over B rows, as `Predictor.predict` has them.

    Attributes:
        model: Who answered.
        version: Its version.
        passes: N; the most of any row with a tolerance.
        seed: The seed of the noise; the same seed gives the same answer.
        scope: `pass` (one sampled network for all rows) or `row` (one for each row).
        estimator: `sampled` or `integrated`.
        outputs: For each output, its quantities by name, each an array [B, …]; `mean` and `variance` first.
        noise: For each output, whether the observation noise is `known` or `unknown`.
        labels: For each output that has them, its classes' names.
        notes: What the caller should know of how it was served.
    """

    model: str
    version: int
    passes: int
    seed: int
    scope: str
    estimator: str
    outputs: Mapping[str, Mapping[str, Array]]
    noise: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> Array | ByOutput:
        """The mean over passes [B, …]; by output name where there are several."""
        return self["mean"]

    @property
    def variance(self) -> Array | ByOutput:
        """The variance between passes [B, …], divided by N - 1; by output name where there are several."""
        return self["variance"]

    @property
    def quantities(self) -> dict[str, Array | ByOutput]:
        """Every quantity by name, as `prediction[name]` gives it."""
        names = dict.fromkeys(name for found in self.outputs.values() for name in found)
        return {name: self[name] for name in names}

    def __getitem__(self, quantity: str) -> Array | ByOutput:
        """Return a quantity [B, …]; by output name where there are several outputs.

        `label` holds the classes' names where the output has them, as in JSON; `outputs` has their numbers.
        """
        values = {
            output: self._named(output, quantity, found[quantity])
            for output, found in self.outputs.items()
            if quantity in found
        }
        if not values:
            known = sorted({name for found in self.outputs.values() for name in found})
            raise KeyError(f"no output has the quantity {quantity!r}; there are {', '.join(known)}")
        return next(iter(values.values())) if len(self.outputs) == 1 else values

    def _named(self, output: str, quantity: str, values: Array) -> Array:
        labels = self.labels.get(output, ())
        return np.asarray(labels)[values] if quantity == "label" and labels else values
