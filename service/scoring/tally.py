"""What answers amount to: rows, passes, how many are uncertain or no number; it does not know files or engines."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.signature import Output

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Tally:
    """What some answers amount to.

    Attributes:
        rows: How many rows were answered.
        passes: How many passes they took together; 0 where nobody says.
        above: How many are more uncertain than a threshold.
        unfinite: How many have a mean or a variance that is no finite number.
    """

    rows: int = 0
    passes: int = 0
    above: int = 0
    unfinite: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.rows + other.rows,
            self.passes + other.passes,
            self.above + other.above,
            self.unfinite + other.unfinite,
        )


@dataclass(frozen=True)
class Measure:
    """How answers are counted.

    A row's uncertainty is its predictive entropy in nats, of outputs that are classes, and otherwise its standard
    deviation between passes over the absolute value of its mean; the greatest over outputs and elements counts.

    Attributes:
        outputs: What was answered.
        passes: The passes of a row that does not say how many it took.
        threshold: The uncertainty above which a row counts; None counts none.
    """

    outputs: Sequence[Output]
    passes: int | None = None
    threshold: float | None = None

    def of(self, batch: "pa.RecordBatch") -> Tally:
        """Return what a batch of answers amounts to."""
        finite = np.ones(batch.num_rows, dtype=bool)
        for column in chain.from_iterable(self._moments(batch)):
            finite &= np.isfinite(column)
        above = 0 if self.threshold is None else int((self._uncertainty(batch) > self.threshold).sum())
        return Tally(batch.num_rows, self._passes(batch), above, batch.num_rows - int(finite.sum()))

    def _passes(self, batch: "pa.RecordBatch") -> int:
        used = self._columns(batch, "passes_used")
        return int(next(iter(used.values())).sum()) if used else (self.passes or 0) * batch.num_rows

    def _uncertainty(self, batch: "pa.RecordBatch") -> NDArray[Any]:
        found = [*self._columns(batch, "entropy").values()]
        if not found:
            with np.errstate(divide="ignore", invalid="ignore"):
                found = [np.sqrt(variance) / np.abs(mean) for mean, variance in self._moments(batch)]
        most: NDArray[Any] = np.fmax.reduce(found)
        return most

    def _moments(self, batch: "pa.RecordBatch") -> list[tuple[NDArray[Any], NDArray[Any]]]:
        """Return each element's means and variances."""
        variances = self._columns(batch, "variance")
        return [(mean, variances[place]) for place, mean in self._columns(batch, "mean").items() if place in variances]

    def _columns(self, batch: "pa.RecordBatch", quantity: str) -> dict[tuple[str, str], NDArray[Any]]:
        """Return the columns whose names begin with a quantity's, by what stands before and after it."""
        found = {}
        for before in self._prefixes():
            start = before + quantity
            for name, column in zip(batch.schema.names[1:], batch.columns[1:], strict=True):
                if name == start or name.startswith(f"{start}_"):
                    found[before, name.removeprefix(start)] = column.to_numpy(zero_copy_only=False)
        return found

    def _prefixes(self) -> list[str]:
        return [f"{each.name}." for each in self.outputs] if len(self.outputs) > 1 else [""]
