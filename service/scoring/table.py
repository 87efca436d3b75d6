"""A table of rows into a table of answers, part by part, whole or not at all; it does not know who answers.

The answer to a row does not depend on where blocks end: in pass scope noise knows no rows, and in row scope a block
tells the index of its first row.
"""

import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from service import __version__
from service.errors import InvalidInput, RemoteFault
from service.scoring.block import Block, Fault
from service.scoring.columns import answered_rows
from service.scoring.engine import Answers, Described, Engine, OpenEngine, Parameters
from service.scoring.output import check_target, write_output
from service.scoring.source import Source, open_source
from service.scoring.work_folder import WorkFolder, work_folder
from service.signature import Input

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 1 << 16
PART_S = 5.0
PLAIN = Parameters()


@dataclass(frozen=True)
class Summary:
    """What was scored.

    Attributes:
        rows: How many rows.
        seconds: How long it took.
    """

    rows: int
    seconds: float


def score_table(
    source: Path, target: Path, open_engine: OpenEngine, parameters: Parameters = PLAIN, *, restart: bool = False
) -> Summary:
    """Score every row of a table; the result appears whole or not at all, in the same order.

    What is done is kept beside the result until all is; the same call then goes on where the last one stopped.

    Args:
        source: The table, its columns named as the input's features, and `id`, if there is one.
        target: Where the result goes; a file there is replaced.
        open_engine: What answers.
        parameters: What every row is asked.
        restart: Whether to throw away what an earlier call has done.

    Raises:
        InvalidInput: With row and column, or what is wrong with the files.
    """
    started = time.perf_counter()
    check_target(source, target)
    with work_folder(target, restart) as work:
        before = work.manifest()
        settled = _settled(parameters, before)
        engine = open_engine(settled, before["engine"]["kept"] if before else {})
        table = open_source(source, _single_input(engine.described))
        manifest = before or _manifest(parameters, settled, engine)
        if not before:
            work.begin(manifest)
        rows = _Answering(source, table, engine, work, manifest).run()
        write_output(target, work.parts(), manifest)
    return Summary(rows, time.perf_counter() - started)


def _settled(parameters: Parameters, before: Mapping[str, Any] | None) -> Parameters:
    """Return parameters whose seed is drawn, and whose version is the one that a run began with."""
    if before:
        return replace(parameters, **before["settled"])
    return replace(parameters, seed=secrets.randbits(53)) if parameters.seed is None else parameters


def _manifest(parameters: Parameters, settled: Parameters, engine: Engine) -> dict[str, Any]:
    told = engine.described
    return {
        "thinnet": __version__,
        "model": {"name": told.model, "version": told.version, "fingerprint": told.fingerprint},
        "parameters": asdict(parameters),
        "settled": {"seed": settled.seed, "version": told.version},
        "engine": {"name": engine.name, "kept": dict(engine.kept)},
        "block_rows": sys.maxsize if told.couples_rows else engine.block_rows,
    }


def _single_input(told: Described) -> Input:
    inputs = told.inputs
    if len(inputs) != 1 or len(inputs[0].shape) != 1:
        found = "; ".join(f"{one.name} [rows, {', '.join(map(str, one.shape))}]" for one in inputs)
        raise InvalidInput(
            f"a table has rows and features, and the model takes {found}; use Predictor.predict or POST /predict"
        )
    return inputs[0]


class _Answering:
    """Rows on their way from a table through an engine into parts."""

    def __init__(
        self, source: Path, table: Source, engine: Engine, work: WorkFolder, manifest: Mapping[str, Any]
    ) -> None:
        self._source, self._table, self._engine, self._work = source, table, engine, work
        self._block_rows = manifest["block_rows"]
        self._labels = {output.name: output.labels for output in engine.described.outputs}
        self._asked: list[Block] = []
        self._names: list[str] = []

    def run(self) -> int:
        """Answer what no part has yet; return how many rows there are."""
        import pyarrow as pa

        parts = self._work.parts()
        index, first = len(parts), sum(part.rows for part in parts)
        batches: list[pa.RecordBatch] = []
        faults: list[Fault] = []
        rows, began = 0, time.monotonic()
        blocks = self._table.blocks(self._block_rows, first)
        for block, answers in self._answered(blocks):
            batches.append(self._batch(block, answers))
            faults += block.faults
            rows += len(block)
            if rows >= PART_ROWS or time.monotonic() - began >= PART_S:
                self._work.add(index, first, rows, faults, pa.Table.from_batches(batches))
                index, first, rows, batches, faults, began = index + 1, first + rows, 0, [], [], time.monotonic()
        if batches:
            self._work.add(index, first, rows, faults, pa.Table.from_batches(batches))
        return first + rows

    def _answered(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, Answers]]:
        found = self._engine.answers(self._noted(blocks))
        while True:
            try:
                answers = next(found, None)
            except (InvalidInput, RemoteFault) as error:
                raise type(error)(f"{self._place(self._asked[0])}: {error}" if self._asked else str(error)) from error
            if answers is None:
                return
            yield self._asked.pop(0), answers

    def _noted(self, blocks: Iterator[Block]) -> Iterator[Block]:
        for block in blocks:
            if block.faults:
                raise InvalidInput(str(block.faults[0]))
            self._asked.append(block)
            yield block

    def _place(self, block: Block) -> str:
        return f"{self._source}, rows {block.first_row} to {block.first_row + len(block) - 1}"

    def _batch(self, block: Block, answers: Answers) -> "pa.RecordBatch":
        for quantities in answers.values():
            for name, values in quantities.items():
                if np.ndim(values) == 0 or len(values) != len(block):
                    raise RemoteFault(
                        f"{self._place(block)}: {name} has the shape {np.shape(values)}, not a value for each row"
                    )
        batch = answered_rows(block, answers, self._labels)
        self._names = self._names or batch.schema.names
        if batch.schema.names != self._names:
            raise RemoteFault(
                f"{self._place(block)}: the answer has other columns than before: "
                f"{_differing(self._names, batch.schema.names)}"
            )
        return batch


def _differing(names: Sequence[str], others: Sequence[str]) -> str:
    return ", ".join(sorted(set(names) ^ set(others))[:10]) or "another order"
