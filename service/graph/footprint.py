"""How much memory passes and rows need, measured by running a few rows once, and what a device has turned out to hold.

Weights are not counted: they are there once, however many passes run. It does not know what a caller allows.
"""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from service.errors import OutOfMemory

_TRIED = re.compile(r"Tried to allocate [\d.]+ \w+")  # torch's words
_REMEMBERED_S = 60.0
_DRAWING = 6  # noise, and what drawing it holds besides: words, doubles, copies
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

    def rows_within(self, most_bytes: int) -> int:
        """Return how many rows have a pass within so many bytes, one at least."""
        return max(1, (most_bytes - self.fixed) // max(1, self.row))

    @staticmethod
    def through(two: int, four: int) -> "Cost":
        """Return the cost that two rows and four rows tell."""
        row = max(0, four - two) // 2
        return Cost(max(0, two - 2 * row), row)


@dataclass
class Footprint:
    """What a plan needs for inputs of some lengths.

    Attributes:
        trunk_row: Bytes of one row at the peak of the trunk.
        suffix: One pass at the peak of the suffix, noise apart: what the processor's cache should hold.
        around: What a pass's noise, which is read once, its drawing and its statistics need besides.
        kept_row: Bytes of one row that the statistics of all passes hold.
        largest: The largest value of one pass, which memory that is kept at hand should hold.
        ceiling: Bytes past which a device had no memory, so that nobody tries again for a while.
        lowered: When it turned out, by `time.monotonic`: others, who may have had that memory, come and go.
    """

    trunk_row: int
    suffix: Cost
    around: Cost
    kept_row: int
    largest: Cost
    ceiling: int = sys.maxsize
    lowered: float = -math.inf

    def lower(self, ceiling: int) -> None:
        """Remember that there was no memory past so many bytes."""
        self.ceiling, self.lowered = self._limit(ceiling), time.monotonic()

    def forget(self) -> None:
        """Remember nothing, for not even the least that can run had memory."""
        self.ceiling = sys.maxsize

    def of_rows(self, rows: int) -> int:
        """Return the bytes that one pass of so many rows needs."""
        return self.suffix.fixed + self.around.fixed + self._row * rows

    def rows_within(self, most_bytes: int) -> int:
        """Return how many rows have one pass within so many bytes, one at least."""
        return max(1, (self._limit(most_bytes) - self.of_rows(0)) // self._row)

    def of_passes(self, rows: int, passes: int, alone: bool) -> int:
        """Return the bytes that passes of some rows need together.

        Args:
            rows: How many rows.
            passes: How many passes.
            alone: Whether passes run one by one: what is inside one is gone before the next.
        """
        once, each = self._once_and_each(rows, alone)
        return once + each * passes

    def passes_within(self, most_bytes: int, rows: int, alone: bool) -> int:
        """Return how many passes of some rows run within so many bytes, one at least."""
        once, each = self._once_and_each(rows, alone)
        return max(1, (self._limit(most_bytes) - once) // each)

    def _limit(self, most_bytes: int) -> int:
        is_fresh = time.monotonic() - self.lowered < _REMEMBERED_S
        return min(most_bytes, self.ceiling) if is_fresh else most_bytes

    @property
    def _row(self) -> int:
        return max(1, self.trunk_row, self.suffix.row + self.around.row + self.kept_row)

    def _once_and_each(self, rows: int, alone: bool) -> tuple[int, int]:
        inside, around, kept = self.suffix.of(rows), self.around.of(rows), self.kept_row * rows
        return (kept + inside, max(1, around)) if alone else (kept, max(1, inside + around))


@dataclass(frozen=True)
class Peaks:
    """What one run of trunk and suffix held at most, in bytes, and what it took and gave."""

    trunk: int
    suffix: int
    around: int
    kept: int
    largest: int

    @staticmethod
    def of(trunk: "Meter", suffix: "Meter", noises: list[Tensor], outputs: tuple[Tensor, ...]) -> "Peaks":
        """Return the peaks of a run with its noise and its outputs."""
        drawn, given = (sum(each.nbytes for each in tensors) for tensors in (noises, outputs))
        largest = max(suffix.largest, *(each.nbytes for each in noises)) if noises else suffix.largest
        return Peaks(trunk.peak, suffix.peak, _DRAWING * drawn + _STATISTICS * given, _KEPT * given, largest)


class Meter(fx.Interpreter):
    """Run a graph and note the most memory that was alive, its own weights and other tensors apart.

    Attributes:
        peak: How many bytes that was.
        largest: How many bytes the largest value had.
    """

    def __init__(self, module: fx.GraphModule, apart: Sequence[Tensor] = ()) -> None:
        super().__init__(module)
        self.peak = self.largest = 0
        self._apart = {each.untyped_storage().data_ptr() for each in apart}

    def run_node(self, n: fx.Node) -> Any:
        """Run a node and look at what is alive then."""
        value = super().run_node(n)
        if n.op == "get_attr" and isinstance(value, Tensor):
            self._apart.add(value.untyped_storage().data_ptr())
        tensors = [tensor for each in (*self.env.values(), value) for tensor in tensors_of(each)]
        storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
        inside = getattr(n.target, "copies", 0) * sum(each.nbytes for each in tensors_of(value))
        alive = [size for place, size in storages.items() if place not in self._apart]
        self.peak = max(self.peak, sum(alive) + inside)
        self.largest = max(self.largest, *alive, 0)
        return value


def fits(work: Callable[[], object]) -> bool:
    """Do some work and tell whether there was memory for it.

    Who tries again does so after this: while the error is handled, its traceback holds what was made before it.
    """
    try:
        work()
    except torch.OutOfMemoryError:
        return False
    return True


@contextmanager
def memory_named(what: Callable[[], str]) -> Iterator[None]:
    """Name what a device has no memory for.

    Args:
        what: Tells what it is, and how many bytes it needs where that is known.

    Raises:
        OutOfMemory: It has none.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        tried = _TRIED.search(str(error))
        raise OutOfMemory(
            f"the device has no memory for {what()}"
            + (f" ({tried[0]} at the end)" if tried else "")
            + "; ask for fewer rows, end what else uses the device, or serve on one with more memory or on the CPU"
        ) from None


def tensors_of(value: Any) -> list[Tensor]:
    """Return the tensors in a node's value."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    return [each for each in values if isinstance(each, Tensor)]


def metered(module: fx.GraphModule, *arguments: Any, apart: Sequence[Tensor] = ()) -> tuple[tuple[Any, ...], Meter]:
    """Run a graph and return its values and what it held at most, some tensors apart."""
    meter = Meter(module, apart)
    with torch.inference_mode():
        values: tuple[Any, ...] = meter.run(*arguments)
    return values, meter
