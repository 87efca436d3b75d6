"""A CSV file at full speed, as long as nothing in it is wrong; from the first fault on, `csv_rows` reads it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from service.scoring.block import Block
from service.scoring.csv_rows import read_blocks, read_header
from service.scoring.limits import Limits
from service.signature import Input

if TYPE_CHECKING:
    pass

_CHUNK_BYTES = 1 << 20


class CsvSource:
    """A CSV file.

    Args:
        place: The file.
        spec: An input whose rows have one axis.
    """

    def __init__(self, place: Path, spec: Input) -> None:
        self._place, self._spec, self._limits = place, spec, Limits.of(spec.dtype)
        self._header, self._lines = read_header(place, spec)
        self.files: tuple[Path, ...] = (place,)
        self.rows: int | None = None

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the file's rows in blocks."""
        yield from read_blocks(self._place, self._spec, block_rows, first_row)
