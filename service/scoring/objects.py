"""Tables and results in object stores, by URI, as files of this machine while a run lasts; it does not know formats.

What pyarrow reaches is reached: s3://, gs://, abfs://, hdfs://, file://, with the credentials that each of them looks
for. A result is sent when it is whole, and object stores show what is sent whole or not at all. What was fetched and
what is done stays in `.<result>.staged` until then, so that the same command, in the same folder, goes on.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copyfileobj, rmtree
from typing import TYPE_CHECKING

from service.errors import InvalidInput, NotWritten
from service.scoring.work_folder import place_of

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_URI = re.compile(r"(s3|gs|gcs|abfs|abfss|hdfs|viewfs|file):/{1,3}(.+)")  # a Path has lost a slash
_COPIED_BYTES = 1 << 22


def uri_of(path: Path) -> str | None:
    """Return the URI that a path was given as; None where it is a path."""
    found = _URI.fullmatch(str(path))
    return found and f"{found[1]}://{'/' if found[1] == 'file' else ''}{found[2]}"


def place_here(output: Path) -> Path:
    """Return where a result is written on this machine."""
    return output if uri_of(output) is None else _stage(output) / output.name


@contextmanager
def staged(source: Path, output: Path) -> Iterator[tuple[Path, Path]]:
    """Give a table and a place for a result on this machine; where all goes well the result is sent where it belongs.

    Args:
        source: A path, or a URI of a file or a folder.
        output: A path or a URI.

    Raises:
        InvalidInput: The table cannot be fetched.
        NotWritten: The result cannot be sent.
    """
    here, stage = place_here(output), _stage(output)
    if uri_of(source) or uri_of(output):
        stage.mkdir(parents=True, exist_ok=True)
    try:
        yield _fetched(source, stage), here
        if uri := uri_of(output):
            _send_all(stage, output.name, uri)
    except BaseException:
        if not (place_of(here).exists() or (stage / output.name).exists()):  # nothing was done
            rmtree(stage, ignore_errors=True)
        raise
    rmtree(stage, ignore_errors=True)


def _stage(output: Path) -> Path:
    folder = Path() if uri_of(output) else output.absolute().parent
    return folder / f".{output.name}.staged"


def _fetched(source: Path, stage: Path) -> Path:
    from pyarrow.fs import FileSelector, FileType

    if (uri := uri_of(source)) is None:
        return source
    place = stage / "table" / source.name
    with _told(f"{uri} cannot be read", InvalidInput):
        system, path = _system(uri)
        found = system.get_file_info(path)
        if found.type == FileType.NotFound:
            raise FileNotFoundError("there is no such object")
        files = [found] if found.is_file else system.get_file_info(FileSelector(path))
        for each in files:
            if each.is_file:
                _fetch(system, each, place if found.is_file else place / each.base_name)
    return place


def _fetch(system: "FileSystem", info: "FileInfo", place: Path) -> None:
    """Copy an object, unless it was copied before and has not changed since."""
    stamp = info.mtime_ns
    if place.exists() and (place.stat().st_size, place.stat().st_mtime_ns) == (info.size, stamp):
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with system.open_input_stream(info.path) as given, place.open("wb") as kept:
        copyfileobj(given, kept, _COPIED_BYTES)
    if stamp is not None:
        os.utime(place, ns=(stamp, stamp))


def _send_all(stage: Path, name: str, uri: str) -> None:
    """Send a result, and what was told beside it of rows that were left out, which goes first."""
    for file in sorted(stage.iterdir(), reverse=True):
        if file.is_file() and file.name.startswith(name):
            _send(file, uri + file.name.removeprefix(name))


def _send(place: Path, uri: str) -> None:
    with _told(f"{uri} cannot be written (the result is kept at {place})", NotWritten):
        system, path = _system(uri)
        with place.open("rb") as kept, system.open_output_stream(path) as sent:
            copyfileobj(kept, sent, _COPIED_BYTES)


def _system(uri: str) -> "tuple[FileSystem, str]":
    from pyarrow.fs import FileSystem

    system, path = FileSystem.from_uri(uri)
    return system, path


@contextmanager
def _told(problem: str, fault: type[InvalidInput] | type[NotWritten]) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:300]
        raise fault(f"{problem}: {reason}; check the address, the credentials and the network") from None
