"""The answer: what was computed from the passes, output by output; it does not know how."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from service.rows import all_finite


@dataclass(frozen=True)
class Prediction:
    """The statistics of N stochastic passes over B rows.

    Attributes:
        passes: N; the most of any row with a tolerance.
        seed: The seed of the noise; the same seed gives the same answer.
        scope: `pass` (one sampled network for all rows) or `row` (one for each row).
        outputs: For each output, its quantities by name, each a CPU tensor [B, …]; `mean` and `variance` first.
        noise: For each output, whether the observation noise is `known` or `unknown`.
        estimator: `sampled`, or `integrated`: each output's last site was integrated exactly, the others sampled.
        notes: What the caller should know of how it was served, such as sites where another form stood in.
    """

    passes: int
    seed: int
    scope: str
    outputs: Mapping[str, Mapping[str, Tensor]]
    noise: Mapping[str, str]
    estimator: str = "sampled"
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> Tensor | dict[str, Tensor]:
        """The mean over passes [B, …]; by output name where there are several."""
        return self["mean"]

    @property
    def variance(self) -> Tensor | dict[str, Tensor]:
        """The variance between passes [B, …], divided by N - 1; by output name where there are several."""
        return self["variance"]

    @property
    def values(self) -> int:
        """How many numbers it holds."""
        return sum(quantity.numel() for found in self.outputs.values() for quantity in found.values())

    def __getitem__(self, quantity: str) -> Tensor | dict[str, Tensor]:
        values = {name: found[quantity] for name, found in self.outputs.items() if quantity in found}
        if not values:
            known = sorted({name for found in self.outputs.values() for name in found})
            raise KeyError(f"no output has the quantity {quantity!r}; there are {', '.join(known)}")
        return next(iter(values.values())) if len(self.outputs) == 1 else values


def unfinite_rows(outputs: Mapping[str, Mapping[str, Tensor]], most: int = 10) -> tuple[str, ...]:
    """Return a note for each output whose mean or variance is not finite, with the rows."""
    notes = []
    for name, found in outputs.items():
        both = found["mean"] + found["variance"]
        if all_finite(both):
            continue
        bad = (~both.isfinite().reshape(len(both), -1).all(1)).nonzero().flatten().tolist()
        rows = ", ".join(map(str, bad[:most])) + (f" and {len(bad) - most} more" if len(bad) > most else "")
        notes.append(
            f"output {name!r}: rows {rows} are not finite; the network overflows or divides by zero there, "
            "so check these rows' inputs"
        )
    return tuple(notes)
