"""Answers as CSV text; it does not know files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_SPECIAL = '[",\r\n]'


def header_line(names: Sequence[str]) -> bytes:
    """Return the line of names."""
    import pyarrow as pa

    return lines(pa.RecordBatch.from_arrays([pa.array([name]) for name in names], names=list(names)))


def lines(batch: "pa.RecordBatch") -> bytes:
    """Return a line for each row: numbers as their shortest text, text in quotes where it needs them."""
    return _content(_joined([_text(column) for column in batch.columns]))


def _joined(cells: Sequence["pa.Array"]) -> "pa.Array":
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*cells[:-1], pc.binary_join_element_wise(cells[-1], "", "\n"), ",")


def _content(rows: "pa.Array") -> bytes:
    """Return the bytes of texts behind one another, as they lie in memory."""
    import numpy as np

    _, offsets, text = rows.buffers()
    ends = np.frombuffer(offsets, np.int32, len(rows) + 1 + rows.offset)
    return bytes(memoryview(text)[ends[rows.offset] : ends[-1]])


def _text(column: "pa.Array") -> "pa.Array":
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        column = pc.cast(column, pa.string())
    column = pc.fill_null(column, "")
    special = pc.match_substring_regex(column, _SPECIAL)
    if not pc.any(special).as_py():
        return column
    quoted = pc.binary_join_element_wise('"', pc.replace_substring(column, '"', '""'), '"', "")
    return pc.if_else(special, quoted, column)
