"""A CSV file as blocks of numbers, each cell checked, told by line and column; it does not know what they are for."""

import csv
import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, TextIO

import numpy as np
from numpy.typing import NDArray

from service.datasheet import FLOATING
from service.errors import InvalidInput
from service.signature import Input

ROW = "row"
_IDENTITY = "id"
_BFLOAT16_MAX = 3.3895313892515355e38
_SHOWN = 10


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a table.

    Attributes:
        key: The name of the column that tells rows apart.
        keys: Its cells.
        rows: The features [B, F], float64 or int64, in the model's order.
        first_row: The index of the first row in the table.
    """

    key: str
    keys: list[str]
    rows: NDArray[Any]
    first_row: int


@dataclass(frozen=True)
class _Columns:
    """Where a header has what the model takes."""

    names: tuple[str, ...]
    features: tuple[int, ...]
    identity: int | None

    def key_of(self, cells: Sequence[str], row: int) -> str:
        return str(row) if self.identity is None else cells[self.identity]

    @property
    def key(self) -> str:
        return ROW if self.identity is None else self.names[self.identity]


@dataclass(frozen=True)
class _Range:
    """What a dtype holds."""

    dtype: str
    low: float
    high: float

    @property
    def whole(self) -> bool:
        return self.dtype not in FLOATING


def read_blocks(source: Path, spec: Input, block_rows: int) -> Iterator[Block]:
    """Read a file in blocks, its columns in the order of the input's features.

    Args:
        source: A UTF-8 CSV file with a header.
        spec: An input whose rows have one axis.
        block_rows: How many rows a block has; the last may have fewer.

    Raises:
        InvalidInput: The file, its header, a line or a cell is not as it should be; with line and column.
    """
    try:
        file = source.open(encoding="utf-8-sig", newline="")
    except OSError as error:
        raise InvalidInput(f"{source} cannot be read: {error.strerror}; check the path") from error
    with file:
        records = _records(source, file)
        columns = _read_header(source, records, spec)
        numbered = enumerate(records)
        limits = _range(spec.dtype)
        if not (first := list(islice(numbered, block_rows))):
            raise InvalidInput(f"{source} has a header and no rows; give one row at least")
        while first:
            yield _block(source, columns, limits, first)
            first = list(islice(numbered, block_rows))


def _records(source: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Yield each record with the line that it ends on; empty lines may only end the file."""
    reader = csv.reader(file, strict=True)
    empty = 0
    while True:
        try:
            cells = next(reader, None)
        except UnicodeDecodeError as error:
            raise InvalidInput(
                f"{source}, after line {reader.line_num}: not UTF-8 ({error.reason}); save it as UTF-8"
            ) from error
        except csv.Error as error:
            raise InvalidInput(f"{source}, line {reader.line_num}: {error}; correct the quotes there") from error
        if cells is None:
            return
        if empty and cells:
            raise InvalidInput(f"{source}, line {empty} is empty; take it out")
        empty = empty or (0 if cells else reader.line_num)
        if cells:
            yield reader.line_num, cells


def _read_header(source: Path, records: Iterator[tuple[int, list[str]]], spec: Input) -> _Columns:
    _, cells = next(records, (0, []))
    names = tuple(cell.strip() for cell in cells)
    if not names:
        raise InvalidInput(f"{source} is empty; give a header and a row at least")
    if "" in names:
        raise InvalidInput(
            f"{source}: column {names.index('') + 1} has no name; name it, or leave it out (pandas: index=False)"
        )
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"{source} has the column {name!r} {names.count(name)} times; keep one")
    identity = next(
        (at for at, name in enumerate(names) if name.lower() == _IDENTITY and name not in spec.features), None
    )
    others = tuple(at for at in range(len(names)) if at != identity)
    return _Columns(names, _feature_places(source, names, others, spec), identity)


def _feature_places(source: Path, names: tuple[str, ...], others: tuple[int, ...], spec: Input) -> tuple[int, ...]:
    found = [names[at] for at in others]
    if spec.features:
        missing = [name for name in spec.features if name not in found]
        extra = [name for name in found if name not in spec.features]
        if missing or extra:
            raise InvalidInput(f"{source}: {_mismatch(missing, extra, spec.features)}{_separator_hint(names)}")
        return tuple(names.index(name) for name in spec.features)
    if all(_is_number(name) for name in found) and found != [str(index) for index in range(len(found))]:
        raise InvalidInput(f"{source} begins with numbers ({', '.join(found[:3])}, …); put a header above them")
    if spec.shape[0] not in (-1, len(found)):
        raise InvalidInput(
            f"{source} has {len(found)} columns besides id, the model takes {spec.shape[0]} features"
            f"{_separator_hint(names) or '; give one column for each'}"
        )
    return others


def _mismatch(missing: Sequence[str], extra: Sequence[str], features: Sequence[str]) -> str:
    parts = [f"{what} columns: {_listed(names)}" for what, names in (("missing", missing), ("unknown", extra)) if names]
    near = next((close[0] for name in extra if (close := difflib.get_close_matches(name, missing, 1))), None)
    hint = f"did you mean {near!r}?" if near else f"the model takes {_listed(features)}, and id if there is one"
    return f"{', '.join(parts)}; {hint}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _separator_hint(names: Sequence[str]) -> str:
    found = next((mark for mark in ";\t|" if len(names) == 1 and mark in names[0]), None)
    return f"; the file is separated by {found!r}: save it with commas" if found else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _range(dtype: str) -> _Range:
    if dtype == "bool":
        return _Range(dtype, 0, 1)
    if dtype == "bfloat16":
        return _Range(dtype, -_BFLOAT16_MAX, _BFLOAT16_MAX)
    limits = np.finfo(dtype) if dtype in FLOATING else np.iinfo(dtype)
    kind = float if dtype in FLOATING else int
    return _Range(dtype, kind(limits.min), kind(limits.max))


def _block(source: Path, columns: _Columns, limits: _Range, records: list[tuple[int, tuple[int, list[str]]]]) -> Block:
    keys, rows = [], []
    for row, (line, cells) in records:
        where = f"{source}, line {line} (row {row})"
        if len(cells) != len(columns.names):
            raise InvalidInput(
                f"{where} has {len(cells)} cells, the header has {len(columns.names)}; give one for each"
            )
        keys.append(columns.key_of(cells, row))
        rows.append([_number(cells[at], limits, f"{where}, column {columns.names[at]!r}") for at in columns.features])
    return Block(columns.key, keys, np.array(rows, dtype=np.int64 if limits.whole else np.float64), records[0][0])


def _number(cell: str, limits: _Range, where: str) -> float:
    text = cell.strip()
    if not text:
        _fail(where, "is empty; fill it in, or leave the row out")
    try:
        number = _exact(text) if limits.whole else float(text)
    except ValueError:
        _fail(where, f"is {cell[:40]!r}, not a number; give a finite number with a point")
    if "_" in text or not math.isfinite(number):
        _fail(where, f"is {cell[:40]!r}; give a finite number, digits and a point only")
    if limits.whole and number != int(number):
        _fail(where, f"is {cell[:40]!r}; the model takes whole numbers ({limits.dtype})")
    if not limits.low <= number <= limits.high:
        _fail(where, f"is {cell[:40]!r}, outside of {limits.dtype}; give {limits.low:g} to {limits.high:g}")
    return int(number) if limits.whole else number


def _exact(text: str) -> float:
    """Return a number, exactly where it is whole; far outside of any dtype, infinity."""
    try:
        number = int(text)
    except ValueError:
        return float(text)
    return number if abs(number) < 1 << 64 else math.inf


def _fail(where: str, problem: str) -> NoReturn:
    raise InvalidInput(f"{where} {problem}")
