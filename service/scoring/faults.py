"""Rows that are at fault, once all is read: whether that ends the run, and a file of them; it does not know tables."""

import json
from collections.abc import Sequence
from pathlib import Path

from service.errors import InvalidInput
from service.scoring.block import Fault
from service.scoring.work_folder import Part, WorkFolder

ENDING = ".errors.jsonl"


def check_faults(parts: Sequence[Part], on_error: str) -> list[Fault]:
    """Return every row that is at fault; there may be none where the run fails on them.

    Raises:
        InvalidInput: There is one, from an earlier run that left it out.
    """
    faults = [fault for part in parts for fault in part.faults]
    if faults and on_error == "fail":
        raise InvalidInput(f"{faults[0]} (an earlier run left such rows out: go on with --on-error skip or record)")
    return faults


def faults_place(target: Path) -> Path:
    """Return where a result's faults are told."""
    return target.with_name(target.name + ENDING)


def write_faults(work: WorkFolder, target: Path, faults: Sequence[Fault]) -> str | None:
    """Write a line for each row at fault beside a result, or take away an old file where there is none.

    Returns:
        The file's place, if there is one.
    """
    place = faults_place(target)
    if not faults:
        place.unlink(missing_ok=True)
        return None
    with work.result(place) as file:
        for fault in faults:
            told = {"row": fault.row, "column": fault.column, "reason": fault.reason, "place": fault.place}
            file.write(json.dumps(told, ensure_ascii=False).encode() + b"\n")
    return str(place)
