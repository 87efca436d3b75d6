"""Rows that are one array, in a NumPy file that is read as it is needed, or in a JSON file; it does not know models."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.scoring.arrow_rows import array_problem
from service.scoring.block import ROW, Block, Fault
from service.scoring.limits import Limits
from service.scoring.whole_rows import read_rows_file
from service.signature import Input


def open_numpy(place: Path, spec: Input) -> "ArraySource":
    """Return the rows of a NumPy file.

    Raises:
        InvalidInput: It is no such file, or an array of another shape.
    """
    try:
        array = np.load(place, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InvalidInput(f"{place} cannot be read as a NumPy array: {error}; write it with numpy.save") from error
    return ArraySource(place, array, spec)


def open_json(place: Path, spec: Input) -> "ArraySource":
    """Return the rows of a JSON file, which is read whole: rows, or a body of `POST /predict`.

    Raises:
        InvalidInput: It is no such file, or an array of another shape.
    """
    return ArraySource(place, np.asarray(read_rows_file(place, (spec,))[spec.name]), spec)


class ArraySource:
    """An array [rows, …].

    Args:
        place: The file that it is from.
        array: The array.
        spec: What the model takes.

    Raises:
        InvalidInput: It has another shape.
    """

    is_seekable = True

    def __init__(self, place: Path, array: NDArray[Any], spec: Input) -> None:
        self.place = place
        self.files: tuple[Path, ...] = (place,)
        self._spec, self._limits, self._array = spec, Limits.of(spec.dtype), array
        shape, kind = self._array.shape, self._array.dtype
        fits = len(shape) == 1 + len(spec.shape) and all(
            want in (-1, got) for want, got in zip(spec.shape, shape[1:], strict=True)
        )
        if not fits or kind.kind not in "iufb":
            wanted = ", ".join("any" if size < 0 else str(size) for size in spec.shape)
            raise InvalidInput(
                f"{place} holds {kind} of the shape {list(shape)}; the model takes numbers [rows, {wanted}]"
            )
        if not shape[0]:
            raise InvalidInput(f"{place} has no rows; give one row at least")

    def count(self) -> int | None:
        """Return how many rows there are."""
        return len(self._array)

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the rows in blocks."""
        for start in range(first_row, len(self._array), block_rows):
            yield self._block(start, min(block_rows, len(self._array) - start))

    def _block(self, start: int, count: int) -> Block:
        import pyarrow as pa

        given = np.array(self._array[start : start + count])
        with np.errstate(over="ignore", invalid="ignore"):
            rows = given.astype(self._limits.array)
        held = self._limits.holds(given)
        faults = []
        for at in [] if held.all() else np.flatnonzero(~held.reshape(count, -1).all(1)).tolist():
            column, reason = self._told(given[at], held[at])
            faults.append(Fault(start + at, column, reason, f"{self.place}, row {start + at}"))
            rows[at] = 0
        return Block(ROW, pa.array(np.arange(start, start + count)), rows, start, tuple(faults))

    def _told(self, row: NDArray[Any], held: NDArray[Any]) -> tuple[str, str]:
        """Return the column and the reason of a row's first fault."""
        at = int(np.flatnonzero(~held.reshape(-1))[0])
        names = self._spec.features
        column = names[at] if row.ndim == 1 and at < len(names) else ""
        return column, array_problem(row, self._limits) or ""
