"""A NumPy file of rows, read from the disk as it is needed; it does not know what the numbers are for."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from service.errors import InvalidInput
from service.scoring.arrow_rows import array_problem
from service.scoring.block import ROW, Block, Fault
from service.scoring.limits import Limits
from service.signature import Input


class NumpySource:
    """An array [rows, …] in a file.

    Args:
        place: The file.
        spec: What the model takes.

    Raises:
        InvalidInput: It is no such file, or an array of another shape.
    """

    is_seekable = True

    def __init__(self, place: Path, spec: Input) -> None:
        self.place = place
        self.files: tuple[Path, ...] = (place,)
        self._spec, self._limits = spec, Limits.of(spec.dtype)
        try:
            self._array = np.load(place, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise InvalidInput(f"{place} cannot be read as a NumPy array: {error}; write it with numpy.save") from error
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
        return Block(ROW, pa.array(range(start, start + count), pa.int64()), rows, start, tuple(faults))

    def _told(self, row: np.ndarray, held: np.ndarray) -> tuple[str, str]:
        """Return the column and the reason of a row's first fault."""
        at = int(np.flatnonzero(~held.reshape(-1))[0])
        names = self._spec.features
        column = names[at] if row.ndim == 1 and at < len(names) else ""
        return column, array_problem(row, self._limits) or ""
