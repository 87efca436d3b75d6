"""A CSV file at full speed, as long as nothing in it is wrong; from the first doubt on, `csv_rows` reads it."""

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.errors import InvalidInput
from service.scoring.arrow_rows import ColumnReader, regrouped
from service.scoring.block import Block
from service.scoring.csv_rows import read_blocks, read_header
from service.scoring.limits import Limits
from service.signature import Input

if TYPE_CHECKING:
    import pyarrow as pa

_CHUNK_BYTES = 1 << 20
_COUNTED_BYTES = 1 << 22
_EXACT = 1 << 53
_ODD_QUOTES = re.compile(rb'[^,\r\n"]"[^,\r\n"]|[,\r\n]""[^,\r\n"]')


class CsvSource:
    """A CSV file.

    Args:
        place: The file.
        spec: An input whose rows have one axis.

    Raises:
        InvalidInput: Its header is not as it should be, or nothing stands below it.
    """

    is_seekable = False

    def __init__(self, place: Path, spec: Input) -> None:
        if len(spec.shape) != 1:
            raise InvalidInput(
                f"{place}: a CSV file has rows and features, and the model takes "
                f"{spec.name} [rows, {', '.join(map(str, spec.shape))}]; give a .npy, .jsonl or .parquet file"
            )
        self.place = place
        self.files: tuple[Path, ...] = (place,)
        self._spec, self._limits = spec, Limits.of(spec.dtype)
        self._header, self._header_lines = read_header(place, spec)

    def count(self) -> int | None:
        """Return how many rows there are, about: its lines but the header's, where it is not compressed."""
        if self.place.suffix == ".gz":
            return None
        with self.place.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_COUNTED_BYTES), b"")) - 1

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the rows in blocks."""
        import pyarrow as pa

        for has_quotes in (False, True):
            try:
                for block in self._read_fast(block_rows, first_row, has_quotes):
                    yield block
                    first_row += len(block)
                return
            except (pa.ArrowException, OSError, UnicodeDecodeError):
                continue  # what is wrong, if anything is, will be told exactly
        yield from read_blocks(self.place, self._spec, block_rows, first_row)

    def _read_fast(self, block_rows: int, first_row: int, has_quotes: bool) -> Iterator[Block]:
        reader = ColumnReader(str(self.place), self._schema(), self._spec)
        for table in regrouped(self._batches(has_quotes), block_rows, first_row):
            block = reader.block(table, first_row, str)
            if block.faults or self._is_inexact(block):
                raise OSError("a row at fault")
            yield block
            first_row += len(block)

    def _schema(self) -> "pa.Schema":
        import pyarrow as pa

        names = enumerate(self._header.names)
        return pa.schema([(name, pa.string() if at == self._header.identity else pa.float64()) for at, name in names])

    def _is_inexact(self, block: Block) -> bool:
        """Tell whether a whole number was read that float64, in which all are read, may have rounded."""
        return self._limits.is_whole and bool((abs(block.rows.astype(np.float64)) >= _EXACT).any())

    def _batches(self, has_quotes: bool) -> Iterator["pa.RecordBatch"]:
        import pyarrow as pa
        from pyarrow import csv

        read = csv.ReadOptions(
            block_size=_CHUNK_BYTES, skip_rows=self._header_lines, column_names=list(self._header.names)
        )
        parse = csv.ParseOptions(newlines_in_values=has_quotes, ignore_empty_lines=False)
        types = {field.name: field.type for field in self._schema()}
        convert = csv.ConvertOptions(column_types=types, null_values=[""], strings_can_be_null=False)
        with pa.input_stream(str(self.place)) as stream:
            plain = _Plain(stream, has_quotes)
            with csv.open_csv(plain, read, parse, convert) as reader:
                yield from reader


class _Plain(io.RawIOBase):
    """Bytes whose quotes are read alike by everybody.

    Args:
        stream: Where they come from.
        has_quotes: Whether there may be any: to look for lines within them takes as long as to read.
    """

    def __init__(self, stream: "pa.NativeFile", has_quotes: bool) -> None:
        self._stream, self._has_quotes, self._before = stream, has_quotes, b"\n"
        self._quotes = 0

    def readable(self) -> bool:
        """Tell that they can be read."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes.

        Raises:
            OSError: There are quotes among them, or quotes that do not stand around a whole cell.
        """
        some: bytes = self._stream.read(size)
        if b'"' in some and (not self._has_quotes or _ODD_QUOTES.search(self._before + some)):
            raise OSError("quotes within a cell")
        self._quotes += some.count(b'"')
        if not some and self._quotes % 2:
            raise OSError("quotes that do not end")
        self._before = (self._before + some[-3:])[-3:]
        return some
