"""A result that appears whole or not at all, in the format that its name ends in; it does not know what is scored."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from service.errors import InvalidInput
from service.scoring.csv_text import header_line, lines
from service.scoring.work_folder import Part, whole_file


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


def write_output(target: Path, parts: Sequence[Part], manifest: Mapping[str, Any]) -> None:
    """Write the parts' answers to the target, which they replace once they are on the disk."""
    with whole_file(target.resolve()) as file:
        is_first = True
        for part in parts:
            for batch in part.batches():
                if is_first:
                    file.write(header_line(batch.schema.names))
                    is_first = False
                file.write(lines(batch))
