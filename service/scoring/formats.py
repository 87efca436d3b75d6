"""Answers in a format that others read, streamed into an open file; it does not know where they come from."""

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import orjson

from service.errors import InvalidInput
from service.scoring.csv_text import header_line, lines

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_ROWS, _LEAST_ROWS = 1 << 17, 1 << 10
_GROUP_CELLS = 1 << 23
Write = Callable[[BinaryIO, "pa.Schema", Iterator["pa.RecordBatch"], int], None]
"""Writes batches of a schema, so many rows in all, to a file."""


def writer_of(target: Path) -> Write:
    """Return what writes the format that a name ends in."""
    name = target.name.lower()
    return next(write for ending, write in _WRITERS.items() if name.endswith(ending))


def write_csv(file: BinaryIO, schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], rows: int) -> None:
    """Write CSV: floats as the shortest text of their float32."""
    file.write(header_line(schema.names))
    for batch in batches:
        file.write(lines(batch))


def write_gzipped_csv(file: BinaryIO, schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], rows: int) -> None:
    """Write compressed CSV; the same answers are the same bytes, whenever they are written."""
    with gzip.GzipFile("", "wb", compresslevel=6, fileobj=file, mtime=0) as packed:
        write_csv(cast(BinaryIO, packed), schema, batches, rows)


def write_parquet(file: BinaryIO, schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], rows: int) -> None:
    """Write Parquet in groups of a fixed number of rows."""
    import pyarrow.parquet as pq

    from service.scoring.arrow_rows import regrouped

    with pq.ParquetWriter(file, schema) as writer:
        for table in regrouped(batches, _group_rows(schema)):
            writer.write_table(table.cast(schema), table.num_rows)


def write_arrow(file: BinaryIO, schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], rows: int) -> None:
    """Write an Arrow file."""
    import pyarrow as pa

    from service.scoring.arrow_rows import regrouped

    with pa.ipc.new_file(file, schema) as writer:
        for table in regrouped(batches, _group_rows(schema)):
            writer.write_table(table.combine_chunks().cast(schema), table.num_rows)


def write_json_lines(file: BinaryIO, schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], rows: int) -> None:
    """Write an object for each row; null where a number is not finite."""
    for batch in batches:
        columns = [_plain(column) for column in batch.columns]
        for cells in zip(*columns, strict=True):
            told = dict(zip(schema.names, cells, strict=True))
            file.write(orjson.dumps(told, str, orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))


def check_columns(target: Path, schema: "pa.Schema") -> None:
    """Refuse columns that the format of a name does not hold, before all rows are answered.

    Raises:
        InvalidInput: Which, and the cure.
    """
    import pyarrow as pa

    if writer_of(target) is not write_numpy:
        return
    texts = [
        field.name for field in schema if not (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
    ]
    if texts:
        raise InvalidInput(f"{target}: a .npy file holds numbers, and {', '.join(texts)} is text; name a .parquet file")


def write_numpy(file: BinaryIO, schema: "pa.Schema", batches: Iterator["pa.RecordBatch"], rows: int) -> None:
    """Write a NumPy array with a named field for each column, all of them numbers."""
    kind = np.dtype([(field.name, field.type.to_pandas_dtype()) for field in schema])
    header: dict[str, Any] = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(file, header)
    for batch in batches:
        array = np.empty(batch.num_rows, kind)
        for name, column in zip(schema.names, batch.columns, strict=True):
            array[name] = column.to_numpy(zero_copy_only=False)
        file.write(array.tobytes())


def _group_rows(schema: "pa.Schema") -> int:
    """Return how many rows are written together: fewer of wide tables, so that little is held."""
    return max(_LEAST_ROWS, min(_GROUP_ROWS, _GROUP_CELLS // len(schema)))


def _plain(column: "pa.Array") -> list[Any]:
    """Return a column's cells; floats stay float32, so that they are written in their shortest text."""
    import pyarrow as pa

    return [*column.to_numpy(zero_copy_only=False)] if pa.types.is_float32(column.type) else column.to_pylist()


_WRITERS: dict[str, Write] = {
    ".csv": write_csv,
    ".csv.gz": write_gzipped_csv,
    ".parquet": write_parquet,
    ".pq": write_parquet,
    ".jsonl": write_json_lines,
    ".ndjson": write_json_lines,
    ".arrow": write_arrow,
    ".feather": write_arrow,
    ".ipc": write_arrow,
    ".npy": write_numpy,
}
ENDINGS = tuple(_WRITERS)
