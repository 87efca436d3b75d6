"""Parquet and Arrow files, one or a folder of them, read in blocks; it does not know what the columns are for."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from service.errors import InvalidInput
from service.scoring.arrow_rows import ColumnReader, regrouped
from service.scoring.block import Block
from service.signature import Input

if TYPE_CHECKING:
    import pyarrow as pa

_BUFFER_BYTES = 1 << 20
_BATCH_ROWS = 1 << 14
_PARQUET = (".parquet", ".pq")


class ArrowSource:
    """A table in one file or several, which follow one another in the order of their names.

    Args:
        place: The file or the folder.
        files: The files.
        spec: What the model takes.

    Raises:
        InvalidInput: One is damaged or empty, or has other columns than the first.
    """

    is_seekable = True

    def __init__(self, place: Path, files: tuple[Path, ...], spec: Input) -> None:
        self.place, self.files = place, files
        schemas, counts = zip(*(_described(file) for file in files), strict=True)
        readers = [ColumnReader(str(file), schema, spec) for file, schema in zip(files, schemas, strict=True)]
        self._reader = readers[0]
        for file, schema in zip(files, schemas, strict=True):
            for name in self._reader.columns:
                if name not in schema.names or schema.field(name).type != schemas[0].field(name).type:
                    raise InvalidInput(
                        f"{file}: column {name!r} is not as in {files[0].name} ({schemas[0].field(name).type}); "
                        "write all files alike"
                    )
        self._starts = [0, *accumulate(counts)]
        if not self._starts[-1]:
            raise InvalidInput(f"{place} has no rows; give one row at least")

    def count(self) -> int | None:
        """Return how many rows there are."""
        return int(self._starts[-1])

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the rows in blocks."""
        begin = max(0, bisect_right(self._starts, first_row) - 1)
        skip = first_row - self._starts[begin] if begin < len(self.files) else 0
        for table in regrouped(self._batches(begin, skip), block_rows):
            yield self._reader.block(table, first_row, self._where)
            first_row += table.num_rows

    def _batches(self, begin: int, skip: int) -> Iterator["pa.RecordBatch"]:
        """Yield the batches of the files from one on, without its first rows."""
        for file in self.files[begin:]:
            with _readable(file):
                read = _parquet_batches if _is_parquet(file) else _arrow_batches
                yield from _without(skip, read(file, self._reader.columns, skip))
            skip = 0

    def _where(self, row: int) -> str:
        if len(self.files) == 1:
            return f"{self.place}, row {row}"
        at = bisect_right(self._starts, row) - 1
        return f"{self.files[at]}, row {row - self._starts[at]} (row {row} of all)"


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() in _PARQUET


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    import pyarrow as pa

    kind = "Parquet" if _is_parquet(file) else "Arrow"
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        told = " ".join(str(error).split())[:200].rstrip(".")
        raise InvalidInput(f"{file} cannot be read as {kind}: {told}; write it anew, or name it what it is") from error


def _described(file: Path) -> tuple["pa.Schema", int]:
    """Return a file's columns and how many rows it has."""
    import pyarrow.parquet as pq

    with _readable(file):
        if _is_parquet(file):
            with pq.ParquetFile(file) as parquet:
                return parquet.schema_arrow, parquet.metadata.num_rows
        schema, rows = None, 0
        for _, batch in _arrow_batches(file, None):
            schema, rows = batch.schema, rows + batch.num_rows
    if schema is None:
        raise InvalidInput(f"{file} has no rows; give one row at least")
    return schema, rows


Skipped = Iterator[tuple[int, "pa.RecordBatch"]]
"""Batches, each with the index of its first row; those that end before a row may be left out."""


def _without(skip: int, batches: Skipped) -> Iterator["pa.RecordBatch"]:
    for start, batch in batches:
        if start + batch.num_rows > skip:
            yield batch.slice(max(0, skip - start))


def _parquet_batches(file: Path, columns: list[str], skip: int) -> Skipped:
    import pyarrow.parquet as pq

    with pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as parquet:
        count = parquet.num_row_groups
        ends = [*accumulate(parquet.metadata.row_group(index).num_rows for index in range(count))]
        first = bisect_right(ends, skip)
        start = ends[first - 1] if first else 0
        groups = range(first, count)
        for batch in parquet.iter_batches(_BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False):
            yield start, batch.select(columns)
            start += batch.num_rows


def _arrow_batches(file: Path, columns: list[str] | None, skip: int = 0) -> Skipped:
    """Yield the batches of an Arrow file, or of a stream that was saved as one; they are read as they are used."""
    import pyarrow as pa

    start = 0
    with pa.memory_map(str(file)) as content:
        try:
            reader = pa.ipc.open_file(content)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        except pa.ArrowInvalid:
            content.seek(0)
            batches = iter(pa.ipc.open_stream(content))
        for batch in batches:
            yield start, batch if columns is None else batch.select(columns)
            start += batch.num_rows
