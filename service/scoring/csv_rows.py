"""A CSV file, cell by cell: whatever is wrong is told by line and column; it does not know what the numbers are for.

`csv_blocks` reads faster what has nothing wrong in it.
"""

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO, cast

import numpy as np

from service.errors import InvalidInput
from service.scoring.block import Block, Fault
from service.scoring.header import Header, match_header
from service.scoring.limits import Limits
from service.signature import Input

_KINDS = {b"PAR1": "a Parquet file", b"ARRO": "an Arrow file", b"\x93NUM": "a NumPy file", b"PK\x03\x04": "a workbook"}
Record = tuple[int, list[str]]
"""A line's number, where the record ends, and its cells."""


def read_blocks(source: Path, spec: Input, block_rows: int, first_row: int = 0) -> Iterator[Block]:
    """Read a file in blocks, its columns in the order of the input's features.

    Args:
        source: A UTF-8 CSV file with a header; compressed where its name ends in `.gz`.
        spec: An input whose rows have one axis.
        block_rows: How many rows a block has; the last may have fewer.
        first_row: The row to begin with.

    Raises:
        InvalidInput: The file or its header is not as it should be; rows that are not are the blocks' faults.
    """
    with _opened(source) as file:
        records = _records(source, file)
        header = _header(source, records, spec)
        limits = Limits.of(spec.dtype)
        numbered = enumerate(records)
        for _ in islice(numbered, first_row):
            pass
        while some := list(islice(numbered, block_rows)):
            yield _block(source, header, limits, some)


def read_header(source: Path, spec: Input) -> tuple[Header, int]:
    """Return what a file's header has, and how many lines it takes.

    Raises:
        InvalidInput: It is not as it should be, or nothing stands below it.
    """
    with _opened(source) as file:
        records = _records(source, file)
        line, cells = next(records, (0, []))
        header = _matched(source, cells, spec)
        if next(records, None) is None:
            raise InvalidInput(f"{source} has a header and no rows; give one row at least")
        return header, line


def _header(source: Path, records: Iterator[Record], spec: Input) -> Header:
    return _matched(source, next(records, (0, []))[1], spec)


def _matched(source: Path, cells: list[str], spec: Input) -> Header:
    if not cells:
        raise InvalidInput(f"{source} is empty; give a header and a row at least")
    return match_header(str(source), [cell.strip() for cell in cells], spec)


@contextmanager
def _opened(source: Path) -> Iterator[TextIO]:
    try:
        opened = gzip.open if source.suffix == ".gz" else open
        with opened(source, "rt", encoding="utf-8-sig", newline="") as file:
            yield cast(TextIO, file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InvalidInput(f"{source} is no whole gzip file ({error}); compress it again") from error
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror or error}; check the path") from error


def _records(source: Path, file: TextIO) -> Iterator[Record]:
    """Yield each record with the line that it ends on; empty lines may only end the file."""
    reader = csv.reader(file, strict=True)
    empty = 0
    while True:
        try:
            cells = next(reader, None)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{source}, after line {reader.line_num}: not UTF-8 ({error.reason}); {_unread_cure(source)}"
            ) from error
        except csv.Error as error:
            raise InvalidInput(f"{source}, line {reader.line_num}: {error}; {_cure(error)}") from error
        if cells is None:
            return
        if empty and cells:
            raise InvalidInput(f"{source}, line {empty} is empty; take it out")
        empty = empty or (0 if cells else reader.line_num)
        if cells:
            yield reader.line_num, cells


def _unread_cure(source: Path) -> str:
    with source.open("rb") as file:
        kind = _KINDS.get(file.read(4))
    return f"it is {kind}: name it so" if kind else "save it as UTF-8"


def _cure(error: csv.Error) -> str:
    is_long = "limit" in str(error)
    return "shorten the cell, or close the quotes before it" if is_long else "correct the quotes there"


def _block(source: Path, header: Header, limits: Limits, records: list[tuple[int, Record]]) -> Block:
    import pyarrow as pa

    keys, rows, faults = [], [], []
    for row, (line, cells) in records:
        try:
            numbers = _numbers(cells, header, limits)
        except _BadCell as error:
            faults.append(Fault(row, error.column, str(error), f"{source}, line {line} (row {row})"))
            numbers = [0.0] * len(header.features)
        rows.append(numbers)
        keys.append(_key(header, cells, row))
    array = np.array(rows, dtype=np.int64 if limits.is_whole else np.float64).astype(limits.array)
    key_cells = pa.array(keys, pa.int64() if header.identity is None else pa.string())
    return Block(header.key, key_cells, array, records[0][0], tuple(faults))


class _BadCell(ValueError):
    """A cell that is no number, or a record that has not a cell for each column."""

    def __init__(self, column: str, reason: str) -> None:
        super().__init__(reason)
        self.column = column


def _numbers(cells: list[str], header: Header, limits: Limits) -> list[float]:
    if len(cells) != len(header.names):
        raise _BadCell("", f"has {len(cells)} cells, the header has {len(header.names)}; give one for each")
    numbers = []
    for at in header.features:
        try:
            numbers.append(limits.read(cells[at]))
        except ValueError as error:
            raise _BadCell(header.names[at], str(error)) from None
    return numbers


def _key(header: Header, cells: list[str], row: int) -> int | str:
    if header.identity is None:
        return row
    return cells[header.identity] if header.identity < len(cells) else ""
