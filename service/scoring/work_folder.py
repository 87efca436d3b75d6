"""What is done of a run, kept beside its output until all is: a manifest and parts; it does not know what is scored.

    .answers.csv.parts/lock             held by the run that works here
    .answers.csv.parts/manifest.json    what the run is
    .answers.csv.parts/000000.arrow     the first rows' answers, and which rows were at fault

A part is written to a draft, flushed to the disk and renamed: one that is there is done, whatever happened since.
"""

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, BinaryIO

from service.errors import InvalidInput, NotWritten
from service.scoring.block import Fault
from service.scoring.manifest import Manifest

if TYPE_CHECKING:
    import pyarrow as pa

_MANIFEST = "manifest.json"
_LOCK = "lock"
_TOLD = b"thinnet"


@dataclass(frozen=True)
class Part:
    """Answers to consecutive rows.

    Attributes:
        place: Its file.
        first_row: The index of its first row.
        rows: How many rows of the table it answers, those at fault among them.
        faults: Rows that were at fault.
    """

    place: Path
    first_row: int
    rows: int
    faults: tuple[Fault, ...]

    def batches(self) -> Iterator["pa.RecordBatch"]:
        """Yield its answers."""
        import pyarrow as pa

        with pa.ipc.open_file(pa.memory_map(str(self.place))) as reader:
            for index in range(reader.num_record_batches):
                yield reader.get_batch(index).replace_schema_metadata(None)


class WorkFolder:
    """Parts of one run, and what the run is.

    Args:
        place: The folder, which is there and held.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def manifest(self) -> Manifest | None:
        """Return what the run is; None where it has not begun."""
        try:
            return Manifest(**json.loads((self.place / _MANIFEST).read_bytes()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise InvalidInput(f"{self.place / _MANIFEST} cannot be read ({error}); give --restart") from None

    def begin(self, manifest: Manifest) -> None:
        """Write what the run is."""
        with whole_file(self.place / _MANIFEST) as file:
            file.write(json.dumps(asdict(manifest), indent=1).encode())

    def parts(self) -> list[Part]:
        """Return the parts that are done, in order."""
        found: list[Part] = []
        while (place := self._place(len(found))).exists():
            found.append(_read_part(place))
        return found

    def done(self) -> tuple[int, int]:
        """Return how many parts are done, and the first row that is not."""
        parts = self.parts()
        return len(parts), sum(part.rows for part in parts)

    def add(self, index: int, first_row: int, rows: int, faults: Sequence[Fault], table: "pa.Table") -> Part:
        """Keep a part."""
        import pyarrow as pa

        part = Part(self._place(index), first_row, rows, tuple(faults))
        told = {"first_row": first_row, "rows": rows, "faults": [asdict(fault) for fault in faults]}
        table = table.replace_schema_metadata({_TOLD: json.dumps(told).encode()})
        with whole_file(part.place) as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return part

    def _place(self, index: int) -> Path:
        return self.place / f"{index:06}.arrow"


def place_of(target: Path) -> Path:
    """Return where an output's parts are kept."""
    return target.absolute().with_name(f".{target.name}.parts")


@contextmanager
def work_folder(target: Path, restart: bool = False) -> Iterator[WorkFolder]:
    """Hold the work folder of an output; it goes when all went well, or where no part is done.

    Args:
        target: The output.
        restart: Whether what is there shall be thrown away.

    Raises:
        InvalidInput: Another run works there, or it cannot be made.
    """
    place = place_of(target)
    with _locked(place, target):
        if restart:
            for entry in place.iterdir():
                if entry.name != _LOCK:
                    entry.unlink()
        work = WorkFolder(place)
        try:
            yield work
        except BaseException:
            if not work._place(0).exists():
                rmtree(place, ignore_errors=True)
            raise
        rmtree(place, ignore_errors=True)


@contextmanager
def whole_file(place: Path) -> Iterator[BinaryIO]:
    """Write to a draft beside a file, which it replaces once it is on the disk."""
    draft = place.with_name(f".{place.name}.draft" if not place.name.startswith(".") else f"{place.name}.draft")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
        _sync_folder(place.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def _locked(place: Path, target: Path) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    with (place / _LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotWritten(
                f"another run is writing {target}; wait for it, or name another file for the result"
            ) from None
        yield


def _read_part(place: Path) -> Part:
    import pyarrow as pa

    with pa.ipc.open_file(pa.memory_map(str(place))) as reader:
        told = json.loads(reader.schema.metadata[_TOLD])
    return Part(place, told["first_row"], told["rows"], tuple(Fault(**fault) for fault in told["faults"]))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
