"""A file that appears whole or not at all; it does not know what is written."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from service.errors import InvalidInput

if TYPE_CHECKING:
    from _csv import Writer


def check_target(source: Path, target: Path) -> None:
    """Refuse a target that cannot be replaced, before any work is done.

    Raises:
        InvalidInput: It is the source, no ordinary file, or in a directory that is not there.
    """
    if target.exists() and not target.is_file():
        raise InvalidInput(f"{target} is not an ordinary file and cannot be replaced; name a file")
    if not target.absolute().parent.is_dir():
        raise InvalidInput(f"{target}: there is no directory {target.parent}; make it first")
    if target.exists() and source.exists() and target.samefile(source):
        raise InvalidInput(f"{target} is the file to be scored; name another for the result")


@contextmanager
def write_whole(target: Path) -> Iterator["Writer"]:
    """Write CSV to a hidden file beside the target, which it replaces only once everything went well.

    Raises:
        InvalidInput: The directory cannot be written.
    """
    place = target.resolve()
    draft = place.with_name(f".{place.name}.{token_hex(4)}.part")
    try:
        file = draft.open("x", encoding="utf-8", newline="")
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error.strerror}; name a file in another directory") from error
    try:
        with file:
            yield csv.writer(file, lineterminator="\n")
        draft.replace(place)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
