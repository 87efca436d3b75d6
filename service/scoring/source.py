"""Tables by their files' endings, each read in blocks of rows; it does not know what is asked of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from service.scoring.block import Block
from service.signature import Input


class Source(Protocol):
    """A table to be scored.

    Attributes:
        files: What it is read from, in order.
        rows: How many rows it has, as far as that is known.
    """

    files: tuple[Path, ...]
    rows: int | None

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield its rows from a row on, in blocks of a number of rows; the last may have fewer.

        Raises:
            InvalidInput: It cannot be read on; rows that are not as they should be are the blocks' faults.
        """


def open_source(place: Path, spec: Input) -> Source:
    """Return a table whose columns fit an input.

    Raises:
        InvalidInput: It cannot be read, or has other columns.
    """
    from service.scoring.csv_blocks import CsvSource

    return CsvSource(place, spec)
