"""Tables by their names' endings, each read in blocks of rows; it does not know what is asked of them."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from service.errors import InvalidInput
from service.scoring.block import Block
from service.scoring.several import SeveralInputs, side_by_side
from service.signature import Input

CSV, GZIPPED = (".csv",), (".csv.gz",)
PARQUET = (".parquet", ".pq")
JSON_LINES = (".jsonl", ".ndjson")
ARROW = (".arrow", ".feather", ".ipc")
NUMPY = (".npy",)
JSON = (".json",)
IMAGES = (".png", ".jpg", ".jpeg")
ENDINGS = (*CSV, *GZIPPED, *PARQUET, *JSON_LINES, *ARROW, *NUMPY, *JSON)


class Source(Protocol):
    """A table to be scored.

    Attributes:
        place: What it is called.
        files: What it is read from, in order.
        is_seekable: Whether its number of rows is known, and reading may begin at any row as soon as at the first.
    """

    place: Path
    files: tuple[Path, ...]
    is_seekable: bool

    def count(self) -> int | None:
        """Return how many rows it has, about, where that is soon known."""

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield its rows from a row on, in blocks of a number of rows; the last may have fewer.

        Raises:
            InvalidInput: It cannot be read on; rows that are not as they should be are the blocks' faults.
        """


OpenTable = Callable[[Path, Sequence[Input]], Source]
"""Opens a table that fits what a model takes."""


def open_source(place: Path, inputs: Sequence[Input]) -> Source:
    """Return a table that fits what a model takes.

    Args:
        place: A file or a folder.
        inputs: What the model takes; of several, a table has the features side by side.

    Raises:
        InvalidInput: It cannot be read, has another ending or other columns, or the model takes no table.
    """
    check_source(place)
    name, spec = place.name.lower(), side_by_side(inputs)
    if len(inputs) == 1:
        return _open(place, spec, name)
    if place.is_file() and name.endswith((*NUMPY, *JSON)):
        raise InvalidInput(f"{place} has no columns with names, and the model takes {spec.name}; give .csv or .parquet")
    return SeveralInputs(_open(place, spec, name), inputs)


def check_source(place: Path) -> None:
    """Refuse what is not there or of no known kind, before any work is done.

    Raises:
        InvalidInput: Its place, and the cure.
    """
    if not place.exists():
        raise InvalidInput(f"{place} cannot be read: No such file or directory; check the path")
    if place.is_file() and not place.name.lower().endswith(ENDINGS):
        raise InvalidInput(f"{place} ends in none of {', '.join(ENDINGS)}; rename it to what it is, or convert it")


def _open(place: Path, spec: Input, name: str) -> Source:
    if place.is_dir():
        return _open_folder(place, spec)
    if name.endswith((*CSV, *GZIPPED)):
        from service.scoring.csv_blocks import CsvSource

        return CsvSource(place, spec)
    if name.endswith(JSON_LINES):
        from service.scoring.json_lines import JsonLinesSource

        return JsonLinesSource(place, spec)
    if name.endswith((*PARQUET, *ARROW)):
        from service.scoring.arrow_files import ArrowSource

        return ArrowSource(place, (place,), spec)
    if name.endswith(NUMPY):
        from service.scoring.arrays import open_numpy

        return open_numpy(place, spec)
    if name.endswith(JSON):
        from service.scoring.arrays import open_json

        return open_json(place, spec)
    raise InvalidInput(f"{place} is neither a file nor a folder; copy its content into a file")


def _open_folder(place: Path, spec: Input) -> Source:
    """Open a folder of Parquet files, or of images, in the order of their names."""
    files = sorted(
        (file for file in place.iterdir() if file.is_file() and not file.name.startswith((".", "_"))),
        key=lambda file: file.name,
    )
    kinds = {file.suffix.lower() for file in files}
    if kinds and kinds <= {*PARQUET}:
        from service.scoring.arrow_files import ArrowSource

        return ArrowSource(place, tuple(files), spec)
    if kinds and kinds <= {*IMAGES}:
        from service.scoring.images import ImageSource

        return ImageSource(place, tuple(files), spec)
    found = f"has {', '.join(sorted(kinds))}" if kinds else "is empty"
    raise InvalidInput(f"{place} {found}; a folder holds nothing but Parquet files, or but PNG and JPEG images")
