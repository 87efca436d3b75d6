"""Rows on their way from a table through an engine into parts; it does not know what becomes of them."""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from service.errors import InvalidInput, RemoteFault, ThinnetError
from service.scoring.block import Block, Fault
from service.scoring.columns import answered_rows
from service.scoring.engine import Answers, Engine
from service.scoring.progress import Watch
from service.scoring.source import Source
from service.scoring.tally import Measure
from service.scoring.work_folder import WorkFolder

if TYPE_CHECKING:
    import pyarrow as pa

PART_ROWS = 1 << 16
PART_BYTES = 1 << 26
PART_S = 5.0


class Answering:
    """One run's way through a table.

    Args:
        table: The rows.
        engine: What answers.
        work: Where parts are kept.
        block_rows: How many rows a block has.
        measure: How answers are counted for the watch.
        watch: Who is told how it goes.
        stops: Whether the first row at fault ends the run.
        check: Refuses columns that the result cannot hold.
    """

    def __init__(
        self,
        table: Source,
        engine: Engine,
        work: WorkFolder,
        block_rows: int,
        measure: Measure,
        watch: Watch,
        stops: bool,
        check: "Callable[[pa.Schema], None]",
    ) -> None:
        self._table, self._engine, self._work = table, engine, work
        self._block_rows, self._measure, self._watch, self._stops = block_rows, measure, watch, stops
        self._check = check
        self._couples = engine.described.couples_rows
        self._labels = {output.name: output.labels for output in engine.described.outputs}
        self._asked: list[Block] = []
        self._names: list[str] = []
        self._problem: ThinnetError | None = None

    def run(self) -> None:
        """Answer what no part has yet.

        Raises:
            InvalidInput: The table cannot be read on, or a row is at fault and that ends the run.
            RemoteFault: The answers are not as agreed.
        """
        index, first = self._work.done()
        part = _Part(first)
        for block, answers in self._answered(self._table.blocks(self._block_rows, first)):
            batch = self._batch(block.without_faults() if self._couples else block, answers)
            part.add(block, batch)
            self._watch.advance(len(block), self._measure.of(batch))
            if part.is_due():
                part.keep(self._work, index)
                index, part = index + 1, _Part(part.first + part.rows)
        if self._problem is not None:
            raise self._problem
        if part.rows:
            part.keep(self._work, index)

    def _answered(self, blocks: Iterator[Block]) -> Iterator[tuple[Block, Answers]]:
        found = self._engine.answers(self._read(blocks))
        try:
            while (answers := self._next(found)) is not None:
                yield self._asked.pop(0), answers
        finally:
            if isinstance(found, Generator):
                found.close()
        if self._asked and self._problem is None:
            raise RemoteFault(f"{self._rows(self._asked[0])}: no answer came; the same call goes on there")

    def _next(self, found: Iterator[Answers]) -> Answers | None:
        try:
            return next(found, None)
        except (InvalidInput, RemoteFault) as error:
            place = f"{self._rows(self._asked[0])}: " if self._asked else ""
            raise type(error)(f"{place}{error}") from error

    def _read(self, blocks: Iterator[Block]) -> Iterator[Block]:
        """Yield blocks until one cannot be read or ends the run: the engine, whose thread this may be, just ends."""
        try:
            for block in blocks:
                if block.faults and self._stops:
                    self._problem = InvalidInput(str(block.faults[0]))
                    return
                self._asked.append(block)
                yield block.without_faults() if self._couples else block
        except ThinnetError as error:
            self._problem = error

    def _batch(self, block: Block, answers: Answers) -> "pa.RecordBatch":
        for quantities in answers.values():
            for name, values in quantities.items():
                if np.ndim(values) == 0 or len(values) != len(block):
                    raise RemoteFault(
                        f"{self._rows(block)}: {name} has the shape {np.shape(values)}, not a value for each row"
                    )
        batch = answered_rows(block, answers, self._labels)
        if not self._names:
            self._check(batch.schema)
            self._names = batch.schema.names
        if batch.schema.names != self._names:
            raise RemoteFault(
                f"{self._rows(block)}: the answer has other columns than before: "
                f"{_differing(self._names, batch.schema.names)}"
            )
        return batch

    def _rows(self, block: Block) -> str:
        return f"{self._table.place}, rows {block.first_row} to {block.first_row + len(block) - 1}"


class _Part:
    """Answers that are not kept yet."""

    def __init__(self, first: int) -> None:
        self.first, self.rows, self._bytes = first, 0, 0
        self._batches: list[pa.RecordBatch] = []
        self._faults: list[Fault] = []
        self._began = time.monotonic()

    def add(self, block: Block, batch: "pa.RecordBatch") -> None:
        self.rows += len(block)
        self._bytes += batch.nbytes
        self._batches.append(batch)
        self._faults += block.faults

    def is_due(self) -> bool:
        is_large = self.rows >= PART_ROWS or self._bytes >= PART_BYTES
        return is_large or time.monotonic() - self._began >= PART_S

    def keep(self, work: WorkFolder, index: int) -> None:
        import pyarrow as pa

        work.add(index, self.first, self.rows, self._faults, pa.Table.from_batches(self._batches))


def _differing(names: Sequence[str], others: Sequence[str]) -> str:
    return ", ".join(sorted(set(names) ^ set(others))[:10]) or "another order"
