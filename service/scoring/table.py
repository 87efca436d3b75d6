"""A table of rows into a table of answers, part by part, whole or not at all; it does not know who answers.

The answer to a row does not depend on where blocks end: in pass scope noise knows no rows, and in row scope a block
tells the index of its first row.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from service.errors import BadRequest, VersionNotFound
from service.scoring.answering import Answering
from service.scoring.engine import Engine, OpenEngine, Parameters
from service.scoring.faults import check_faults, write_faults
from service.scoring.formats import check_columns
from service.scoring.manifest import Manifest, content_hashes, settle
from service.scoring.output import check_target, write_output
from service.scoring.progress import SILENT, Watch
from service.scoring.source import OpenTable, Source, check_source, open_source
from service.scoring.tally import Measure
from service.scoring.work_folder import WorkFolder, work_folder

OnError = Literal["fail", "skip", "record"]
POLICIES = ("fail", "skip", "record")
PLAIN = Parameters()


@dataclass(frozen=True)
class Summary:
    """What was scored.

    Attributes:
        output: The result.
        rows: How many rows it has.
        left_out: How many rows of the table it has not, because they were at fault.
        errors: Where those are told of, if they were recorded.
        found_done: How many rows an earlier run had done.
        passes: How many passes the answers took together; 0 where the engine does not say.
        above: How many rows are more uncertain than the threshold; None without one.
        unfinite: How many rows have a mean or a variance that is no finite number.
        seconds: How long it took.
        run: What the run was: model, version, seed and parameters.
        notes: What a reader of the answers must know.
    """

    output: str
    rows: int
    left_out: int
    errors: str | None
    found_done: int
    passes: int
    above: int | None
    unfinite: int
    seconds: float
    run: dict[str, Any]
    notes: tuple[str, ...] = ()


def score_table(
    source: Path,
    target: Path,
    open_engine: OpenEngine,
    parameters: Parameters = PLAIN,
    *,
    on_error: OnError = "fail",
    restart: bool = False,
    threshold: float | None = None,
    watch: Watch = SILENT,
    open_table: OpenTable = open_source,
) -> Summary:
    """Score every row of a table; the result appears whole or not at all, in the same order.

    What is done is kept beside the result until all is; the same call then goes on where the last one stopped.

    Args:
        source: The table, its columns named as the input's features, and `id`, if there is one.
        target: Where the result goes, in the format that its name ends in; a file there is replaced.
        open_engine: What answers.
        parameters: What every row is asked.
        on_error: What becomes of a row with a value that is missing or no number: `fail` ends the run, `skip` leaves
            the row out, `record` tells of it in `<target>.errors.jsonl` besides.
        restart: Whether to throw away what an earlier call has done.
        threshold: The uncertainty, as `Measure` has it, above which rows are counted.
        watch: Who is told how it goes.
        open_table: What reads the table, where an engine does so itself.

    Raises:
        InvalidInput: With row and column, or what is wrong with the files.
        RunChanged: What an earlier call has done was for another run.
        NotWritten: There is no room, no permission, or another run is writing the result.
    """
    started = time.perf_counter()
    if on_error not in POLICIES:
        raise BadRequest(f"on_error = {on_error!r} is not known; give one of {', '.join(POLICIES)}")
    check_source(source)
    check_target(source, target)
    with work_folder(target, restart) as work:
        manifest, engine, table = _begin(source, work, open_engine, parameters, open_table)
        told, (_, found_done) = engine.described, work.done()
        measure = Measure(told.outputs, told.passes, threshold)
        with watch:
            watch.begin(table.count() if watch.counts else None, found_done)
            check = partial(check_columns, target)
            Answering(table, engine, work, manifest.block_rows, measure, watch, on_error == "fail", check).run()
        faults = check_faults(work.parts(), on_error)
        tally = write_output(work, target, manifest.told(), measure)
        errors = write_faults(work, target, faults) if on_error == "record" else None
    return Summary(
        output=str(target),
        rows=tally.rows,
        left_out=len(faults),
        errors=errors,
        found_done=found_done,
        passes=tally.passes,
        above=None if threshold is None else tally.above,
        unfinite=tally.unfinite,
        seconds=time.perf_counter() - started,
        run=manifest.told(),
        notes=tuple(engine.notes),
    )


def _begin(
    source: Path, work: WorkFolder, open_engine: OpenEngine, parameters: Parameters, open_table: OpenTable
) -> tuple[Manifest, Engine, Source]:
    """Return what the run is, its engine and its table; it is the one that was begun, if one was.

    Raises:
        RunChanged: One was begun that is another.
    """
    before = work.manifest()
    settled = settle(parameters, before)
    try:
        engine = open_engine(settled, before.kept if before else {})
    except VersionNotFound as error:
        if not before or parameters.version is not None:
            raise
        raise VersionNotFound(f"{error}; the run began with it: put it back, or start anew with --restart") from error
    table = open_table(source, engine.described.inputs)
    manifest = Manifest.of(content_hashes(table.files), parameters, settled, engine)
    if before:
        before.check(manifest)
        return before, engine, table
    work.begin(manifest)
    return manifest, engine, table
