"""JSON Lines, an object for each row, read in blocks; it does not know what the numbers are for."""

import gzip
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from service.errors import InvalidInput
from service.scoring.arrow_rows import nested_rows
from service.scoring.block import ROW, Block, Fault
from service.scoring.header import match_header
from service.scoring.limits import Limits
from service.signature import Input

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = {int, float}
Line = tuple[int, Any]
"""A line's number, and its object or, as text, why it is none."""


class JsonLinesSource:
    """A file with an object on each line: a number for each feature, or nested lists under the input's name.

    Args:
        place: The file.
        spec: What the model takes.

    Raises:
        InvalidInput: It is empty, or its first object has other names.
    """

    is_seekable = False

    def __init__(self, place: Path, spec: Input) -> None:
        self.place = place
        self.files: tuple[Path, ...] = (place,)
        self._spec, self._limits = spec, Limits.of(spec.dtype)
        first = next(self._lines(), None)
        if first is None:
            raise InvalidInput(f"{place} is empty; give an object on each line")
        line, found = first
        if not isinstance(found, dict):
            raise InvalidInput(f"{place}, line {line} {found}")
        self._is_nested = isinstance(found.get(spec.name), list)
        named = Input(spec.name, spec.dtype, (1,), (spec.name,)) if self._is_nested else spec
        if len(named.shape) != 1 or -1 in spec.shape[1:]:
            raise InvalidInput(
                f"{place}: the model takes {spec.name} [rows, {', '.join(map(str, spec.shape))}]; give lists under "
                f"{spec.name!r} in each object"
            )
        header = match_header(str(place), [*found], named)
        self._key = None if header.identity is None else header.key
        self._names = [header.names[at] for at in header.features]
        self._has_whole_keys = self._key is not None and type(found[self._key]) is int

    def count(self) -> int | None:
        """Return how many rows there are, about."""
        return None

    def blocks(self, block_rows: int, first_row: int = 0) -> Iterator[Block]:
        """Yield the rows in blocks."""
        lines = islice(self._lines(), first_row, None)
        while some := list(islice(lines, block_rows)):
            yield self._block(some, first_row)
            first_row += len(some)

    def _lines(self) -> Iterator[Line]:
        """Yield each line that is not empty."""
        opened = gzip.open if self.place.suffix == ".gz" else open
        try:
            with cast(BinaryIO, opened(self.place, "rb")) as file:
                for number, line in enumerate(file, 1):
                    if line.strip():
                        yield number, _parsed(line)
        except OSError as error:
            raise InvalidInput(f"{self.place} cannot be read: {error.strerror or error}; check the path") from error

    def _block(self, lines: Sequence[Line], first_row: int) -> Block:
        wanted = {*self._names} | ({self._key} if self._key is not None else set())
        bad: dict[int, tuple[str, str]] = {}
        rows: list[dict[str, Any]] = []
        blank = dict.fromkeys(wanted, 0)
        for at, (_, found) in enumerate(lines):
            if problem := self._problem(found, wanted):
                bad[at] = problem
            rows.append(blank if problem else found)
        array, wrong = self._array(rows)
        bad |= {at: why for at, why in wrong.items() if at not in bad}
        array[[*bad]] = 0
        faults = tuple(
            Fault(first_row + at, *bad[at], f"{self.place}, line {lines[at][0]} (row {first_row + at})")
            for at in sorted(bad)
        )
        return Block(self._key or ROW, self._keys(rows, first_row), array, first_row, faults)

    def _problem(self, found: Any, wanted: set[str]) -> tuple[str, str] | None:
        """Return column and reason where a line is no object with the names that are wanted."""
        if not isinstance(found, dict):
            return "", str(found)
        if found.keys() == wanted:
            key = None if self._key is None else found[self._key]
            if self._has_whole_keys and type(key) is not int:
                return str(self._key), f"is {key!r}; give a whole number, as the first line does"
            return None
        missing = sorted(wanted - found.keys())
        name = (missing or sorted(found.keys() - wanted))[0]
        return name, "is missing; give it, or leave the row out" if missing else "is unknown; take it out"

    def _array(self, rows: Sequence[dict[str, Any]]) -> tuple[NDArray[Any], dict[int, tuple[str, str]]]:
        if self._is_nested:
            return nested_rows([row[self._spec.name] for row in rows], self._spec, self._limits)
        pick = itemgetter(*self._names)
        cells = [pick(row) for row in rows] if len(self._names) > 1 else [(pick(row),) for row in rows]
        bad: dict[int, tuple[str, str]] = {}
        kinds = {float, int} if not self._limits.is_whole else {int}
        if {*map(type, chain.from_iterable(cells))} <= kinds:
            array = np.array(cells, np.int64 if self._limits.is_whole else np.float64) if _fits(cells) else None
            if array is not None and self._limits.holds(array).all():
                return array.astype(self._limits.array), bad
        array = np.zeros((len(rows), len(self._names)), self._limits.array)
        for at, own in enumerate(cells):
            for index, value in enumerate(own):
                try:
                    array[at, index] = self._number(value)
                except ValueError as error:
                    bad.setdefault(at, (self._names[index], str(error)))
        return array, bad

    def _number(self, value: Any) -> float:
        if value is None:
            raise ValueError("is null; fill it in, or leave the row out")
        if type(value) not in _NUMBERS and not (isinstance(value, bool) and self._limits.dtype == "bool"):
            raise ValueError(f"is {str(value)[:40]!r}, not a number; give a finite number")
        return self._limits.checked(value, repr(value))

    def _keys(self, rows: Sequence[dict[str, Any]], first_row: int) -> "pa.Array":
        import pyarrow as pa

        if self._key is None:
            return pa.array(np.arange(first_row, first_row + len(rows)))
        keys = [row[self._key] for row in rows]
        return pa.array(keys, pa.int64()) if self._has_whole_keys else pa.array([*map(str, keys)], pa.string())


def _fits(cells: Sequence[Sequence[int | float]]) -> bool:
    return all(abs(value) < 1 << 63 for value in chain.from_iterable(cells))


def _parsed(line: bytes) -> Any:
    try:
        found = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"is not JSON ({error}); write one object a line"
    return found if isinstance(found, dict) else "is no object; write {…} with a name for each number"
