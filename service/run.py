"""Run a plan's passes over rows, in blocks of rows and chunks of passes that fit into memory, and gather statistics.

It does not know who asked or what else is running.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from service.ask import Ask
from service.conditional import ConditionalAccumulator
from service.datasheet import MIN_PASSES
from service.errors import TooLarge
from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.footprint import Footprint
from service.graph.nodes import returned, value_of
from service.graph.rates import measured
from service.quantities import Accumulator, needs_samples
from service.signature import Output
from service.tolerance import gather, looks, settled, unsettled_rows

Answers = dict[str, dict[str, Tensor]]
Statistics = Accumulator | ConditionalAccumulator


@dataclass(frozen=True)
class Run:
    """One plan over the rows of one ask.

    Attributes:
        captured: The network.
        compiled: Its plan.
        outputs: What its outputs mean.
        wanted: The quantities of each output.
        ask: How many passes, and their noise.
        memory_bytes: A ceiling on what is held at once besides the inputs and the answer.
        couples_rows: Whether all rows must run together.
    """

    captured: Captured
    compiled: Compiled
    outputs: Sequence[Output]
    wanted: Sequence[tuple[str, ...]]
    ask: Ask
    memory_bytes: int
    couples_rows: bool

    def answers(self, tensors: tuple[Tensor, ...]) -> Answers:
        """Return each output's quantities, [B, …] each.

        Raises:
            TooLarge: Samples or quantiles would not fit into memory.
        """
        rows = len(tensors[0])
        self._check_samples([tuple(each.shape) for each in tensors])
        footprint = self.compiled.footprint(tensors, self.ask.per_row)
        block = self._rows_together(footprint, rows)
        parts = [self._block(tuple(x[at : at + block] for x in tensors), at, footprint) for at in range(0, rows, block)]
        return {output.name: _joined([part[index] for part in parts]) for index, output in enumerate(self.outputs)}

    def unsettled(self, answers: Answers) -> tuple[str, ...]:
        """Return a note for each output with rows that did not reach the tolerance, where there is one."""
        if self.ask.tolerance is None:
            return ()
        pairs = zip(self.outputs, self._reached_by_noise(), strict=True)
        noisy = {output.name: answers[output.name] for output, reached in pairs if reached}
        return unsettled_rows(noisy, self.ask.tolerance)

    def passes_of(self, answers: Answers) -> int:
        """Return how many passes ran: N, or the most of any row with a tolerance."""
        if self.ask.tolerance is None:
            return self.ask.passes
        return max(int(found["passes_used"].max()) for found in answers.values())

    def _block(self, tensors: tuple[Tensor, ...], first_row: int, footprint: Footprint) -> list[dict[str, Tensor]]:
        """Run all passes of some rows, or as many as each row needs, and return each output's quantities."""
        pairs = zip(self.outputs, self.wanted, strict=True)
        accumulators = [self._accumulator(output, names) for output, names in pairs]
        off, values = self._deterministic(tensors), self.compiled.trunk(tensors)
        is_fixed = not any(self.compiled.stochastic)
        if self.ask.tolerance is not None and not is_fixed:
            return self._until_settled(accumulators, off, values, tensors, first_row, footprint)
        passes = MIN_PASSES if is_fixed else self.ask.passes  # equal ones, as many as a variance needs
        draw = Draw(self.ask.seed, 0, passes, self.ask.rows(first_row, len(tensors[0])))
        self._advance(accumulators, values, tensors, draw, footprint)
        return [one.finish(plain) for one, plain in zip(accumulators, off, strict=True)]

    def _until_settled(
        self,
        accumulators: list[Statistics],
        off: Sequence[Tensor | None],
        values: tuple[Any, ...],
        tensors: tuple[Tensor, ...],
        first_row: int,
        footprint: Footprint,
    ) -> list[dict[str, Tensor]]:
        """Run passes of each row until its tolerance is met."""
        rows, here = len(tensors[0]), tensors
        parts, first, running = [], 0, torch.arange(rows, device=tensors[0].device)
        for until in looks(self.ask.passes):
            noisy = self.ask.rows(first_row, rows, None if here is tensors else running.tolist())
            draw = Draw(self.ask.seed, first, until - first, noisy)
            self._advance(accumulators, values, here, draw, footprint)
            done, first = self._done(accumulators, running, until), until
            if bool(done.any()):
                ended = accumulators if bool(done.all()) else [each.of_rows(done) for each in accumulators]
                own = [None if each is None else each[running[done]] for each in off]
                finished = [one.finish(plain) for one, plain in zip(ended, own, strict=True)]
                parts.append((running[done].cpu(), finished))
            if bool(done.all()):
                break
            if bool(done.any()):
                left = (~done).nonzero().flatten()
                running, here = running[left], tuple(each[left] for each in here)
                values = self.compiled.trunk_of_rows(values, here, left)
                accumulators = [each.of_rows(~done) for each in accumulators]
        return gather(parts)

    def _advance(
        self,
        accumulators: Sequence[Statistics],
        values: tuple[Any, ...],
        tensors: tuple[Tensor, ...],
        draws: Draw,
        footprint: Footprint,
    ) -> None:
        """Run passes of some rows in chunks."""
        shapes = [tuple(each.shape) for each in tensors]
        chunk = self._chunk(footprint, shapes)
        end = draws.first_pass + draws.passes
        for first in range(draws.first_pass, end, chunk):
            draw = replace(draws, first_pass=first, passes=min(chunk, end - first))
            for accumulator, raw in zip(accumulators, self._by_output(values, shapes, draw), strict=True):
                accumulator.add(*raw)

    def _done(self, accumulators: Sequence[Statistics], running: Tensor, passes: int) -> Tensor:
        """Tell of each running row [B] whether its passes end here; coupled rows end together."""
        done = torch.ones_like(running, dtype=torch.bool)
        if self.ask.tolerance is None or passes == self.ask.passes:
            return done
        for accumulator, reached in zip(accumulators, self._reached_by_noise(), strict=True):
            done &= settled(*accumulator.spread(), self.ask.tolerance) if reached else True
        return done.all().expand_as(done) if self.couples_rows else done

    def _reached_by_noise(self) -> list[bool]:
        """Tell for each output whether passes differ."""
        return [any(self.compiled.stochastic[index :: len(self.outputs)]) for index in range(len(self.outputs))]

    def _accumulator(self, output: Output, names: tuple[str, ...]) -> Statistics:
        return ConditionalAccumulator(output, names) if self.ask.integrates else Accumulator(output, names)

    def _by_output(
        self, values: tuple[Any, ...], shapes: Sequence[tuple[int, ...]], draw: Draw
    ) -> list[tuple[Tensor, ...]]:
        """Run passes: of each output [S, B, …] its values, or its conditional means and variances."""
        found, count = self.compiled.run(values, shapes, draw), len(self.outputs)
        return [tuple(found[index::count]) for index in range(count)]

    def _deterministic(self, tensors: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
        """Return the outputs with everything off, where they were asked for."""
        if not any("deterministic" in names for names in self.wanted):
            return [None] * len(self.outputs)
        with torch.inference_mode():
            off: tuple[Tensor, ...] = self.captured.program.graph(*tensors)
        return off

    def _rows_together(self, footprint: Footprint, rows: int) -> int:
        """Return how many rows run together: as many as fit into memory, one pass of them at least."""
        suffix, around = footprint.suffix, footprint.around
        row = max(1, footprint.trunk_row, suffix.row + around.row + footprint.kept_row)
        free = self.memory_bytes - suffix.fixed - around.fixed
        return rows if self.couples_rows else max(1, min(rows, free // row))

    def _chunk(self, footprint: Footprint, shapes: Sequence[tuple[int, ...]]) -> int:
        """Return how many passes of a block of rows run together: as many as the cache holds, and memory."""
        rows = shapes[0][0]
        inside, around = footprint.suffix.of(rows), footprint.around.of(rows)
        free = self.memory_bytes - footprint.kept_row * rows
        together, in_memory = max(1, inside), free // max(1, inside + around)
        if self.compiled.thinned_for(shapes, self.ask.per_row):  # what is inside a pass is gone before the next one
            together, in_memory = max(1, around), (free - inside) // max(1, around)
        return max(1, min(self.ask.passes, measured().cache_bytes // together, in_memory))

    def _check_samples(self, shapes: Sequence[tuple[int, ...]]) -> None:
        symbols, nodes = self.captured.symbols, returned(self.captured.program.graph.graph)
        kept = [node for node, names in zip(nodes, self.wanted, strict=True) if needs_samples(names)]
        elements = sum(prod(symbols.lengths(symbols.dims(value_of(node)), shapes)) for node in kept)
        need = 4 * elements * self.ask.passes
        if need > self.memory_bytes:
            raise TooLarge(
                f"samples and quantiles keep every pass: {need} bytes for {shapes[0][0]} rows and {self.ask.passes} "
                f"passes, past the limit of {self.memory_bytes}; ask for fewer rows or passes"
            )


def _joined(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Put the quantities of several blocks of rows behind one another."""
    if len(parts) == 1:
        return parts[0]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
