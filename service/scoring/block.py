"""Consecutive rows of a table, ready for a model, and what was wrong with some of them; it does not know files."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

ROW = "row"


@dataclass(frozen=True)
class Fault:
    """Why a row cannot be scored.

    Attributes:
        row: Its index in the table.
        column: The column at fault; empty where it is the whole row.
        reason: What is wrong, and the cure.
        place: Where it is, for people: the file, and the line where it has lines.
    """

    row: int
    column: str
    reason: str
    place: str

    def __str__(self) -> str:
        column = f", column {self.column!r}" if self.column else ""
        return f"{self.place}{column} {self.reason}"


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table.

    Attributes:
        key: The name of the column that tells rows apart.
        keys: Its cells, as they are typed in the table, or the rows' indices.
        rows: What the model takes [B, …]; zeros where a row is at fault.
        first_row: The index of the first row in the table.
        faults: Rows that are answered by nothing: they keep their place, and their answers are left out.
    """

    key: str
    keys: "pa.Array"
    rows: NDArray[Any]
    first_row: int
    faults: tuple[Fault, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def without_faults(self) -> "Block":
        """Return the rows that are not at fault; their indices are then no longer consecutive."""
        if not self.faults:
            return self
        import pyarrow as pa

        kept = np.ones(len(self), dtype=bool)
        kept[[fault.row - self.first_row for fault in self.faults]] = False
        return replace(self, keys=self.keys.filter(pa.array(kept)), rows=self.rows[kept], faults=())
