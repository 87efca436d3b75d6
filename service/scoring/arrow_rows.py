"""Typed columns as the model's rows, each value checked; it does not know what files they come from."""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.scoring.block import ROW, Block, Fault
from service.scoring.header import Header, match_header
from service.scoring.limits import Limits
from service.signature import Input

if TYPE_CHECKING:
    import pyarrow as pa

Place = Callable[[int], str]
"""Where a row is, for people."""


class ColumnReader:
    """Takes the model's rows out of tables of one schema.

    Args:
        where: The table, for messages.
        schema: Its columns and their types.
        spec: What the model takes: a column for each feature, or one of lists that has the input's name.

    Raises:
        InvalidInput: A column is missing or unknown, or holds no numbers.
    """

    def __init__(self, where: str, schema: "pa.Schema", spec: Input) -> None:
        self._spec, self._limits = spec, Limits.of(spec.dtype)
        self.is_nested = spec.name in schema.names and _is_list(schema.field(spec.name).type)
        if not self.is_nested and len(spec.shape) != 1:
            raise InvalidInput(
                f"{where}: the model takes {spec.name} [rows, {', '.join(map(str, spec.shape))}]; give a column "
                f"{spec.name!r} of lists, or a .npy file"
            )
        match = _nested_header if self.is_nested else match_header
        self._header = match(where, schema.names, spec)
        for at in () if self.is_nested else self._header.features:
            _check_type(where, schema.field(at))
        if self._header.identity is not None:
            _check_key(where, schema.field(self._header.identity))

    @property
    def columns(self) -> list[str]:
        """The names of the columns that are read."""
        own = [self._header.names[at] for at in self._header.features]
        return own if self._header.identity is None else [*own, self._header.key]

    def block(self, table: "pa.Table", first_row: int, place: Place) -> Block:
        """Return a table's rows."""
        import pyarrow as pa

        rows, bad = self._nested_rows(table) if self.is_nested else self._rows(table)
        faults = tuple(Fault(first_row + at, *bad[at], place(first_row + at)) for at in sorted(bad))
        rows[[*bad]] = 0
        if self._header.identity is None:
            return Block(ROW, pa.array(np.arange(first_row, first_row + len(rows))), rows, first_row, faults)
        keys = table.column(self._header.key).combine_chunks()
        if pa.types.is_dictionary(keys.type):
            keys = keys.dictionary_decode()  # each block would have a dictionary of its own
        return Block(self._header.key, keys, rows, first_row, faults)

    def _rows(self, table: "pa.Table") -> tuple[NDArray[Any], dict[int, tuple[str, str]]]:
        """Return the features [B, F], and column and reason of the first fault in each row that has any."""
        names = [self._header.names[at] for at in self._header.features]
        columns = [table.column(name) for name in names]
        rows = np.empty((table.num_rows, len(names)), self._limits.array)
        with np.errstate(over="ignore", invalid="ignore"):
            for at, column in enumerate(columns):
                rows[:, at] = _numbers(column)
            is_well = not any(column.null_count for column in columns) and self._all_held(rows, columns)
        return rows, {} if is_well else self._faults(names, columns)

    def _all_held(self, rows: NDArray[Any], columns: Sequence["pa.ChunkedArray"]) -> bool:
        if not self._limits.is_whole and self._limits.dtype != "bfloat16":
            return bool(np.isfinite(rows).all())
        return all(self._limits.holds(_numbers(column)).all() for column in columns)

    def _faults(self, names: Sequence[str], columns: Sequence["pa.ChunkedArray"]) -> dict[int, tuple[str, str]]:
        found: dict[int, tuple[str, str]] = {}
        for name, column in zip(names, columns, strict=True):
            is_null = column.is_null().to_numpy()
            for at in np.flatnonzero(is_null | ~self._limits.holds(_numbers(column))).tolist():
                found.setdefault(at, (name, self._reason(column[at].as_py())))
        return found

    def _nested_rows(self, table: "pa.Table") -> tuple[NDArray[Any], dict[int, tuple[str, str]]]:
        column = table.column(self._spec.name)
        return nested_rows(column.to_pylist(), self._spec, self._limits)

    def _reason(self, value: Any) -> str:
        if value is None:
            return "is null; fill it in, or leave the row out"
        try:
            self._limits.checked(float(value) if not isinstance(value, int) else value, repr(value))
        except ValueError as error:
            return str(error)
        return f"is {value!r}, which {self._limits.dtype} does not hold; give another number"


def nested_rows(values: Sequence[Any], spec: Input, limits: Limits) -> tuple[NDArray[Any], dict[int, tuple[str, str]]]:
    """Return lists of numbers as rows [B, …], and column and reason of each row at fault."""
    rows = np.zeros((len(values), *spec.shape), limits.array)
    bad: dict[int, tuple[str, str]] = {}
    for at, value in enumerate(values):
        try:
            row = np.array(value)
        except ValueError:
            row = np.array(None)
        if row.dtype.kind not in "iufb" or row.shape != spec.shape:
            shown = "null" if value is None else f"of the shape {list(row.shape)}, or no lists of numbers"
            bad[at] = spec.name, f"is {shown}; the model takes {list(spec.shape)}"
        elif problem := array_problem(row, limits):
            bad[at] = spec.name, problem
        else:
            rows[at] = row
    return rows, bad


def array_problem(row: NDArray[Any], limits: Limits) -> str | None:
    """Return what is wrong with the first number of a row that a dtype does not hold; None where all are well."""
    held = limits.holds(row)
    if held.all():
        return None
    first = tuple(np.argwhere(~held)[0].tolist())
    try:
        limits.checked(row[first].item(), f"{row[first].item()!r} at {list(first)}")
    except ValueError as error:
        return str(error)
    return f"has {row[first].item()!r} at {list(first)}; give another number"


def regrouped(batches: Iterator["pa.RecordBatch"], rows: int, skip: int = 0) -> Iterator["pa.Table"]:
    """Yield tables of a number of rows, but for the last, whatever batches they come in; the first rows are skipped."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        passed = min(skip, batch.num_rows)
        skip, batch = skip - passed, batch.slice(passed)
        while count + batch.num_rows >= rows:
            held.append(batch.slice(0, rows - count))
            yield pa.Table.from_batches(held)
            batch, held, count = batch.slice(rows - count), [], 0
        if batch.num_rows:
            held.append(batch)
            count += batch.num_rows
    if held:
        yield pa.Table.from_batches(held)


def _nested_header(where: str, names: Sequence[str], spec: Input) -> Header:
    if prod(spec.shape) < 0 or -1 in spec.shape:
        raise InvalidInput(f"{where}: {spec.name!r} has rows of several lengths, which a table does not hold")
    plain = Input(spec.name, spec.dtype, (1,), (spec.name,))
    return match_header(where, names, plain)


def _is_list(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _check_type(where: str, field: "pa.Field") -> None:
    import pyarrow as pa

    kind, types = field.type, pa.types
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)):
        raise InvalidInput(f"{where}: column {field.name!r} holds {kind}, not numbers; convert it")


def _check_key(where: str, field: "pa.Field") -> None:
    import pyarrow as pa

    if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
        raise InvalidInput(f"{where}: column {field.name!r} holds {field.type}, which tells no rows apart; convert it")


def _numbers(column: "pa.ChunkedArray") -> NDArray[Any]:
    """Return a column's numbers; 0 where there is none."""
    import pyarrow as pa

    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    if column.null_count:
        column = column.fill_null(pa.scalar(0, column.type) if not pa.types.is_boolean(column.type) else False)
    found: NDArray[Any] = column.to_numpy()
    return found
