"""Run a plan's passes over rows, in blocks of rows and chunks of passes that fit into memory, and gather statistics.

Rows of several asks run together where their noise is the same; each keeps its own passes, quantities and tolerance. It
does not know who asked or what else is running.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor

from service.ask import Ask
from service.block import Block, TooManyRows
from service.conditional import ConditionalAccumulator
from service.datasheet import MIN_PASSES
from service.errors import InvalidInput, TooLarge
from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.footprint import Footprint, fits, memory_named
from service.graph.nodes import returned, value_of
from service.graph.precision import FLOAT32, ruled
from service.graph.rates import KEPT_BYTES, cache_of, measured
from service.graph.scaled_convolution import MANY
from service.group import Group, Quantities, Rule, Statistics, of_rows
from service.job import Pending, Steps
from service.part import Part, Step, noise_rows, rows_of
from service.quantities import Accumulator, needs_samples
from service.signature import Output
from service.transfers import Receipt, received

Answers = dict[str, dict[str, Tensor]]
_OUTSIDE = "index out of range in self"  # torch's words on the CPU


@dataclass(frozen=True)
class Run:
    """One plan, ready to run.

    Attributes:
        captured: The network.
        compiled: Its plan.
        outputs: What its outputs mean.
        memory_bytes: A ceiling on what is held at once besides the inputs and the answer.
        couples_rows: Whether all rows must run together.
    """

    captured: Captured
    compiled: Compiled
    outputs: Sequence[Output]
    memory_bytes: int
    couples_rows: bool

    def rows_together(self, part: Part, step: Step | None) -> int:
        """Return how many rows like a part's run together: as many as fit into memory, one pass of them at least."""
        footprint = self.compiled.footprint(part.tensors, part.ask.per_row)
        if self.couples_rows:
            return part.rows
        most = footprint.rows_within(self.memory_bytes)
        most = min(most, step.row_passes) if step else most
        if not self._gains_by_passes(part):
            return most
        return min(most, footprint.suffix.rows_within(self._cache_bytes() // min(part.ask.passes, MANY)))

    def _gains_by_passes(self, part: Part) -> bool:
        """Tell whether few rows should run together, so that the cache holds many of their passes."""
        if not self.compiled.gains_by_passes or part.ask.per_row:
            return False
        return self.compiled.thinned_for([tuple(each.shape) for each in part.tensors], per_row=False) is None

    def rows_for(self, rows: int, footprint: Footprint) -> int:
        """Return how many rows run in place of so many: more, where that fits and passes that were captured serve."""
        if self.couples_rows:
            return rows
        return max(rows, min(self.compiled.rows_for(rows), footprint.rows_within(self.memory_bytes)))

    def check_samples(self, part: Part) -> None:
        """Check that what must be kept of every pass fits into memory.

        Raises:
            TooLarge: It does not.
        """
        symbols, nodes = self.captured.symbols, returned(self.captured.program.graph.graph)
        shapes = [tuple(each.shape) for each in part.tensors]
        kept = [node for node, names in zip(nodes, part.wanted, strict=True) if needs_samples(names)]
        elements = sum(prod(symbols.lengths(symbols.dims(value_of(node)), shapes)) for node in kept)
        need = 4 * elements * part.ask.passes
        if need > self.memory_bytes:
            raise TooLarge(
                f"samples and quantiles keep every pass: {need} bytes for {part.rows} rows and {part.ask.passes} "
                f"passes, past the limit of {self.memory_bytes}; ask for fewer rows or passes"
            )

    def steps(self, parts: Sequence[Part], step: Step | None) -> Steps[Answers]:
        """Run the passes, a chunk a step; give a part's quantities by output, [B, …] each, once it has had its passes.

        Args:
            parts: Of asks that agree in seed, scope and estimator; several fit together into one block.
            step: How much runs in a step, where others wait for it to end; None leaves it to memory and cache.

        Raises:
            InvalidInput: The network computes places from an input that are not in its table.
            OutOfMemory: The device has no room for one pass of a row, or of all rows where the network couples them.
        """
        footprint = self.compiled.footprint(parts[0].tensors, parts[0].ask.per_row)
        least = sum(part.rows for part in parts) if self.couples_rows else 1
        try:
            with memory_named(lambda: f"a pass of {least} rows, {footprint.of_rows(least)} bytes besides the weights"):
                yield from self._steps(parts, footprint, step)
        except IndexError as error:
            if _OUTSIDE not in str(error):
                raise
            raise InvalidInput(
                "the network looks up numbers of the inputs in a table that is shorter; give smaller ones, none below 0"
            ) from None

    def _steps(self, parts: Sequence[Part], footprint: Footprint, step: Step | None) -> Steps[Answers]:
        if (at_once := self._at_once(parts, footprint, step)) is not None:
            yield from self._answered({place: [each] for place, each in enumerate(at_once)})
            return
        left = dict(enumerate(parts))
        with suppress(TooManyRows):
            if len(parts) > 1:
                for found in Block(self, footprint, parts, step).steps():
                    left = {place: part for place, part in left.items() if place not in found}
                    yield from self._answered({place: [received(each)] for place, each in found.items()})
                return
        for place, part in left.items():
            for blocks in self._in_blocks(part, footprint, step):
                yield from self._answered({place: blocks} if blocks else {})

    def _at_once(self, parts: Sequence[Part], footprint: Footprint, step: Step | None) -> list[Receipt] | None:
        """Run all passes of parts that end by one rule, where they are one chunk; None where they are not, or too many.

        It gives what a block gives, without what a block keeps to go on.
        """
        first, rows = parts[0], sum(part.rows for part in parts)
        shapes = [(rows, *each.shape[1:]) for each in first.tensors]
        if any(each.rule != first.rule for each in parts) or not self._is_one_chunk(first.ask, shapes, footprint, step):
            return None
        found = list[Quantities]()
        if not fits(lambda: found.append(self._all_passes(parts, shapes))):
            self.allow_fewer_passes(footprint, shapes, self._passes(first.ask), first.ask.per_row)
            return None
        if len(parts) == 1:
            return [received(found[0])]
        bounds = pairwise(accumulate((part.rows for part in parts), initial=0))
        return [received([of_rows(each, slice(*own)) for each in found[0]]) for own in bounds]

    def _is_one_chunk(
        self, ask: Ask, shapes: Sequence[tuple[int, ...]], footprint: Footprint, step: Step | None
    ) -> bool:
        """Tell whether all passes of some rows run in one step that a block would take, and none ends before."""
        rows, passes = shapes[0][0], self._passes(ask)
        if ask.tolerance is not None and not self._is_fixed:
            return False
        if step is not None and passes > step.passes(rows, None):
            return False
        return (
            passes <= self.chunk(footprint, shapes, ask.per_row)
            and rows <= footprint.rows_within(self.memory_bytes)
            and self.rows_for(rows, footprint) == rows
        )

    def _all_passes(self, parts: Sequence[Part], shapes: Sequence[tuple[int, ...]]) -> Quantities:
        """Return the quantities of all passes, those of one part's rows behind those of another's."""
        part, tensors = parts[0], rows_of(parts)
        off, statistics = self._deterministic(part, tensors), self.statistics(part)
        draw = Draw(part.ask.seed, 0, self._passes(part.ask), noise_rows(parts))
        by_output = self.by_output(self.compiled.trunk(tensors), shapes, draw)
        for own, raw in zip(statistics, by_output, strict=True):
            own.add(*raw)
        return [own.finish(plain) for own, plain in zip(statistics, off, strict=True)]

    def _answered(self, found: Mapping[int, Sequence[Receipt]]) -> Steps[Answers]:
        """Give answers, each from its blocks of rows; while they are on their way, first that."""
        receipts = [each for blocks in found.values() for each in blocks]
        if not _are_ready(receipts):
            yield Pending(partial(_are_ready, receipts))
        yield {place: self._named(_joined(blocks)) for place, blocks in found.items()}

    def _in_blocks(self, part: Part, footprint: Footprint, step: Step | None) -> Iterator[Sequence[Receipt]]:
        """Run as many rows at once as fit, block after block; give what is known of all once the last has run."""
        at, blocks = 0, list[Receipt]()
        while at < part.rows:
            size, before = self.rows_together(part, step), len(blocks)
            own = part if size >= part.rows else part.block(at, size)
            for last_but_one in blocks[-2:-1]:
                last_but_one.tensors()  # so that no more than two are ahead of whoever comes next
            with suppress(TooManyRows):
                for found in Block(self, footprint, [own], step).steps():
                    blocks += map(received, found.values())
                    yield blocks if found and at + size >= part.rows else ()
                if len(blocks) == before:
                    return  # nobody waits any more
                at += size

    @cached_property
    def reached_by_noise(self) -> tuple[bool, ...]:
        """Whether passes differ in each output."""
        count = len(self.outputs)
        return tuple(any(self.compiled.stochastic[index::count]) for index in range(count))

    def by_output(
        self, values: tuple[Any, ...], shapes: Sequence[tuple[int, ...]], draw: Draw
    ) -> list[tuple[Tensor, ...]]:
        """Run passes: of each output [S, B, …] its values, or its conditional means and variances."""
        found, count = self.compiled.run(values, shapes, draw), len(self.outputs)
        return [tuple(found[index::count]) for index in range(count)]

    def _deterministic(self, part: Part, tensors: tuple[Tensor, ...]) -> Sequence[Tensor | None]:
        """Return the outputs of rows with everything off, where a part asks for them."""
        if not any("deterministic" in names for names in part.wanted):
            return [None] * len(self.outputs)
        with ruled(FLOAT32, tensors[0].device), torch.inference_mode():
            off: tuple[Tensor, ...] = self.captured.program.graph(*tensors)
        return off

    def chunk(self, footprint: Footprint, shapes: Sequence[tuple[int, ...]], per_row: bool) -> int:
        """Return how many passes of a block of rows run together: as many as the cache holds, and memory."""
        rows, alone = shapes[0][0], self.compiled.thinned_for(shapes, per_row) is not None
        most = footprint.passes_within(self.memory_bytes, rows, alone)
        if alone:
            return max(1, min(most, self._cache_bytes() // max(1, footprint.around.of(rows))))
        if self.captured.example[0].device.type == "cpu":
            most = min(most, KEPT_BYTES // max(1, footprint.largest.of(rows)))
        return max(1, min(most, self._cache_bytes() // max(1, footprint.suffix.of(rows))))

    def _cache_bytes(self) -> int:
        return cache_of(self.captured.example[0].device) or measured().cache_bytes

    def statistics(self, part: Part) -> list[Statistics]:
        """Return the statistics of each output, still empty, as a part wants them."""
        kind = ConditionalAccumulator if part.ask.integrates else Accumulator
        return [kind(*each) for each in zip(self.outputs, part.wanted, strict=True)]

    def allow_fewer_passes(
        self, footprint: Footprint, shapes: Sequence[tuple[int, ...]], passes: int, per_row: bool
    ) -> None:
        """Remember that so many passes of a block of rows had no room: half of them may."""
        alone = self.compiled.thinned_for(shapes, per_row) is not None
        footprint.lower(footprint.of_passes(shapes[0][0], passes // 2, alone))

    def group(self, parts: Sequence[Part]) -> Group:
        """Return the statistics, still empty, of parts that end by the same rule."""
        part = parts[0]
        tolerance = None if self._is_fixed else part.ask.tolerance
        rule = Rule(self._passes(part.ask), tolerance, self.reached_by_noise, self.couples_rows)
        off = self._deterministic(part, rows_of(parts))
        return Group(
            rule, self.statistics(part), off, [each.rows for each in parts], [each.is_wanted for each in parts]
        )

    @property
    def _is_fixed(self) -> bool:
        """Whether all passes are equal."""
        return not any(self.compiled.stochastic)

    def _passes(self, ask: Ask) -> int:
        """Return how many passes run: of equal ones, as many as a variance needs."""
        return MIN_PASSES if self._is_fixed else ask.passes

    def _named(self, quantities: Quantities) -> Answers:
        return {output.name: own for output, own in zip(self.outputs, quantities, strict=True)}


def _are_ready(receipts: Sequence[Receipt]) -> bool:
    return all(each.is_ready() for each in receipts)


def _joined(blocks: Sequence[Receipt]) -> Quantities:
    """Wait for the quantities of several blocks of rows, and put them behind one another."""
    if len(blocks) == 1:
        return blocks[0].tensors()
    outputs = zip(*(each.tensors() for each in blocks), strict=True)
    return [{name: torch.cat([each[name] for each in several]) for name in several[0]} for several in outputs]
