"""A table of a model with several inputs: their features side by side, a column each; it does not know files.

A column is named `<input>.<feature>`, as a result's are `<output>.<quantity>`: `<input>.0`, `<input>.1`, … where
features have no names, and `<input>` where it is one number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.scoring.block import Block, Fault
from service.scoring.limits import Limits
from service.signature import Input

if TYPE_CHECKING:
    from service.scoring.source import Source

_WIDE = "float64"  # holds what inputs of different dtypes do, but for whole numbers past 2⁵³


def side_by_side(inputs: Sequence[Input]) -> Input:
    """Return the input that a table has rows of: the only one, or one of all columns.

    Raises:
        InvalidInput: Of several, one has rows that are no list of a fixed length.
    """
    if len(inputs) == 1:
        return inputs[0]
    if any(len(one.shape) > 1 or -1 in one.shape for one in inputs):
        shapes = ", ".join(f"{one.name} [rows, {', '.join(map(str, one.shape))}]" for one in inputs)
        raise InvalidInput(
            f"of several inputs a table has a column for each number, and the model takes {shapes}; ask in batches, "
            "with Predictor.predict here or Client.predict_many at a server"
        )
    names = tuple(name for one in inputs for name in _columns(one))
    dtypes = {one.dtype for one in inputs}
    return Input(
        ", ".join(one.name for one in inputs), dtypes.pop() if len(dtypes) == 1 else _WIDE, (len(names),), names
    )


def by_input(inputs: Sequence[Input], rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Return a table's rows [B, …] as what each input takes, by name."""
    if len(inputs) == 1:
        return {inputs[0].name: rows}
    stops = np.cumsum([prod(one.shape) for one in inputs])[:-1]
    return {
        one.name: part.astype(Limits.of(one.dtype).array).reshape(-1, *one.shape)
        for one, part in zip(inputs, np.split(rows, stops, axis=1), strict=True)
    }


class SeveralInputs:
    """A table read as one wide input, whose numbers are checked against each input's dtype.

    Args:
        table: The table.
        inputs: What the model takes.
    """

    def __init__(self, table: "Source", inputs: Sequence[Input]) -> None:
        self.place, self.files, self.is_seekable = table.place, table.files, table.is_seekable
        self._table = table
        self._names = [name for one in inputs for name in _columns(one)]
        self._limits = [Limits.of(one.dtype) for one in inputs for _ in range(prod(one.shape))]

    def count(self) -> int | None:
        """Return how many rows there are."""
        return self._table.count()

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the rows in blocks."""
        for block in self._table.blocks(block_rows, first_row):
            yield self._checked(block)

    def _checked(self, block: Block) -> Block:
        held = np.stack([own.holds(column) for own, column in zip(self._limits, block.rows.T, strict=True)], 1)
        if held.all():
            return block
        rows, faults = block.rows.copy(), [*block.faults]
        for at in np.flatnonzero(~held.all(1)).tolist():
            faults.append(self._fault(block.first_row + at, rows[at], int(np.argmin(held[at]))))
            rows[at] = 0
        return replace(block, rows=rows, faults=tuple(sorted(faults, key=lambda fault: fault.row)))

    def _fault(self, row: int, values: NDArray[Any], at: int) -> Fault:
        value = values[at].item()
        try:
            self._limits[at].checked(value, f"{value:g}")
            reason = f"is {value:g}, which {self._limits[at].dtype} does not hold; give another number"
        except ValueError as error:
            reason = str(error)
        return Fault(row, self._names[at], reason, f"{self.place}, row {row}")


def _columns(one: Input) -> list[str]:
    if not one.shape:
        return [one.name]
    return [f"{one.name}.{feature}" for feature in one.features or map(str, range(one.shape[0]))]
