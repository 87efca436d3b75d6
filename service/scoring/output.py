"""A result that appears whole or not at all, in the format that its name ends in; it does not know what is scored."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.errors import InvalidInput
from service.scoring.formats import ENDINGS, writer_of
from service.scoring.tally import Measure, Tally
from service.scoring.work_folder import WorkFolder

if TYPE_CHECKING:
    import pyarrow as pa


def check_target(source: Path, target: Path) -> None:
    """Refuse a target that cannot be replaced, before any work is done.

    Raises:
        InvalidInput: It is the source, no ordinary file, of no known format, or in a directory that is not there.
    """
    if target.exists() and not target.is_file():
        raise InvalidInput(f"{target} is not an ordinary file and cannot be replaced; name a file")
    if not target.absolute().parent.is_dir():
        raise InvalidInput(f"{target}: there is no directory {target.parent}; make it first")
    if target.exists() and source.exists() and target.samefile(source):
        raise InvalidInput(f"{target} is the file to be scored; name another for the result")
    if not target.name.lower().endswith(ENDINGS):
        raise InvalidInput(f"{target} ends in none of {', '.join(ENDINGS)}; name a file with such an ending")


def write_output(work: WorkFolder, target: Path, told: Mapping[str, Any], measure: Measure) -> Tally:
    """Write the parts' answers to the target, which they replace whole; return what they amount to.

    Raises:
        InvalidInput: The format does not hold such columns.
    """
    parts, tally = work.parts(), Tally()

    def batches() -> Iterator["pa.RecordBatch"]:
        nonlocal tally
        for part in parts:
            for batch in part.batches():
                tally += measure.of(batch)
                yield batch

    schema = next(parts[0].batches()).schema.with_metadata({"thinnet": json.dumps(dict(told), sort_keys=True)})
    rows = sum(part.rows - len(part.faults) for part in parts)
    with work.result(target) as file:
        writer_of(target)(file, schema, batches(), rows)
    return tally
