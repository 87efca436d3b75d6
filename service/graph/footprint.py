"""How much memory passes and rows need, measured by running a few rows once; it does not know limits.

Weights are not counted: they are there once, however many passes run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

_DRAWING = 5  # what drawing holds beside the noise itself: words, doubles, copies
_STATISTICS = 10  # what taking an output into the statistics needs: several doubles for each of its floats
_KEPT = 32  # what the statistics are and need to merge, whatever the passes: a dozen doubles and more for each float


@dataclass(frozen=True)
class Cost:
    """Bytes of one pass: some whatever its rows, some for each row."""

    fixed: int
    row: int

    def of(self, rows: int) -> int:
        """Return the bytes of one pass of so many rows."""
        return self.fixed + self.row * rows

    @staticmethod
    def through(two: int, four: int) -> "Cost":
        """Return the cost that two rows and four rows tell."""
        row = max(0, four - two) // 2
        return Cost(max(0, two - 2 * row), row)


@dataclass(frozen=True)
class Footprint:
    """What a plan needs for inputs of some lengths.

    Attributes:
        trunk_row: Bytes of one row at the peak of the trunk.
        suffix: One pass at the peak of the suffix: what the processor's cache should hold.
        around: What drawing a pass's noise and its statistics need besides.
        kept_row: Bytes of one row that the statistics of all passes hold.
    """

    trunk_row: int
    suffix: Cost
    around: Cost
    kept_row: int


@dataclass(frozen=True)
class Peaks:
    """What one run of trunk and suffix held at most, in bytes, and what it took and gave."""

    trunk: int
    suffix: int
    around: int
    kept: int

    @staticmethod
    def of(trunk: int, suffix: int, noises: list[Tensor], outputs: tuple[Tensor, ...]) -> "Peaks":
        """Return the peaks of a run with its noise and its outputs."""
        drawn, given = (sum(each.nbytes for each in tensors) for tensors in (noises, outputs))
        return Peaks(trunk, suffix, _DRAWING * drawn + _STATISTICS * given, _KEPT * given)


class Meter(fx.Interpreter):
    """Run a graph and note the most memory that was alive, its own weights apart."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.peak = 0
        self._weights: set[int] = set()

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and look at what is alive then."""
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            self._weights.add(value.untyped_storage().data_ptr())
        tensors = [tensor for each in (*self.env.values(), value) for tensor in tensors_of(each)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        inside = getattr(n.target, "copies", 0) * sum(each.nbytes for each in tensors_of(value))
        alive = sum(size for place, size in storages.items() if place not in self._weights)
        self.peak = max(self.peak, alive + inside)
        return value


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a node's value."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [each for each in values if isinstance(each, Tensor)]


def metered(module: fx.GraphModule, *arguments: Any) -> tuple[tuple[Any, ...], int]:
    """Run a graph and return its values and the most bytes that were alive."""
    meter = Meter(module)
    with torch.inference_mode():
        values: tuple[Any, ...] = meter.run(*arguments)
    return values, meter.peak
