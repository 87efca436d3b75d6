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

        with pa.ipc.open_file(pa.OSFile(str(self.place))) as reader:
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
        """Write what a run is that begins here; whatever was left here goes."""
        self.clear()
        with whole_file(self.place / _MANIFEST, self.place / f"{_MANIFEST}.draft") as file:
            file.write(json.dumps(asdict(manifest), indent=1).encode())

    def parts(self) -> list[Part]:
        """Return the parts that are done, in order."""
        found: list[Part] = []
        rows = 0
        while (place := self._place(len(found))).exists():
            part = _read_part(place)
            if part.first_row != rows:
                break  # of a run before
            found.append(part)
            rows += part.rows
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
        with whole_file(part.place, self.place / "part.draft") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return part

    @contextmanager
    def result(self, target: Path) -> Iterator[BinaryIO]:
        """Write to a draft in here, which replaces a file once it is on the disk.

        Raises:
            NotWritten: There is no room, or no permission.
        """
        with whole_file(target.resolve(), self.place / f"{target.name}.draft") as file:
            yield file

    def has_parts(self) -> bool:
        """Tell whether anything is done."""
        return self._place(0).exists()

    def close(self) -> None:
        """Take the folder away: the manifest first, so that what may be left of it is of no run."""
        (self.place / _MANIFEST).unlink(missing_ok=True)
        rmtree(self.place, ignore_errors=True)

    def clear(self) -> None:
        """Take away all that is done."""
        (self.place / _MANIFEST).unlink(missing_ok=True)
        for entry in self.place.iterdir():
            if entry.name != _LOCK:
                entry.unlink()

    def _place(self, index: int) -> Path:
        return self.place / f"{index:06}.arrow"


def place_of(target: Path) -> Path:
    """Return where an output's parts are kept."""
    place = target.resolve()
    return place.with_name(f".{place.name}.parts")


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
        work = WorkFolder(place)
        try:
            if restart:
                work.clear()
            yield work
        except BaseException:
            if not work.has_parts():
                work.close()
            raise
        work.close()


@contextmanager
def whole_file(place: Path, draft: Path) -> Iterator[BinaryIO]:
    """Write to a draft on the same file system, which replaces a file once it is on the disk.

    Raises:
        NotWritten: There is no room, or no permission.
    """
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(place)
        _sync_folder(place.parent)
    except OSError as error:
        raise NotWritten(
            f"{place} cannot be written: {error.strerror or error}; once it can be, the same command goes on"
        ) from error
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


@contextmanager
def _locked(place: Path, target: Path) -> Iterator[None]:
    try:
        place.mkdir(exist_ok=True)
        file = (place / _LOCK).open("ab")
    except OSError as error:
        raise NotWritten(f"{target} cannot be written: {error.strerror}; name a file in another directory") from error
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotWritten(
                f"another run is writing {target}; wait for it, or name another file for the result"
            ) from None
        yield


def _read_part(place: Path) -> Part:
    import pyarrow as pa

    try:
        with pa.ipc.open_file(pa.OSFile(str(place))) as reader:
            told = json.loads(reader.schema.metadata[_TOLD])
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidInput(f"{place} cannot be read ({error}); give --restart") from error
    return Part(place, told["first_row"], told["rows"], tuple(Fault(**fault) for fault in told["faults"]))


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
