"""Run a plan's passes over rows, in blocks of rows and chunks of passes that fit into memory, and gather statistics.

Rows of several asks run together where their noise is the same; each keeps its own passes, quantities and tolerance. It
does not know who asked or what else is running.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor

from service.clock import Clock, Taken
from service.conditional import ConditionalAccumulator
from service.datasheet import MIN_PASSES
from service.errors import InvalidInput, TooLarge
from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.footprint import Footprint, fits, memory_named
from service.graph.layout import with_rows
from service.graph.nodes import returned, value_of
from service.graph.precision import FLOAT32, ruled
from service.graph.rates import cache_of, measured
from service.group import Group, Quantities, Rule, Statistics
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
        return min(most, step.row_passes) if step else most

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
        left = dict(enumerate(parts))
        with suppress(_TooManyRows):
            if len(parts) > 1:
                for found in _Block(self, footprint, parts, step).steps():
                    left = {place: part for place, part in left.items() if place not in found}
                    yield from self._answered({place: [received(each)] for place, each in found.items()})
                return
        for place, part in left.items():
            for blocks in self._in_blocks(part, footprint, step):
                yield from self._answered({place: blocks} if blocks else {})

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
            with suppress(_TooManyRows):
                for found in _Block(self, footprint, [own], step).steps():
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
        inside, around = footprint.suffix.of(rows), footprint.around.of(rows)
        cache_bytes = cache_of(self.captured.example[0].device) or measured().cache_bytes
        in_cache = cache_bytes // max(1, around if alone else inside)
        return max(1, min(in_cache, footprint.passes_within(self.memory_bytes, rows, alone)))

    def group(self, parts: Sequence[Part]) -> Group:
        """Return the statistics, still empty, of parts that end by the same rule."""
        part, is_fixed = parts[0], not any(self.compiled.stochastic)
        kind = ConditionalAccumulator if part.ask.integrates else Accumulator
        statistics: list[Statistics] = [kind(*each) for each in zip(self.outputs, part.wanted, strict=True)]
        passes = MIN_PASSES if is_fixed else part.ask.passes  # equal ones, as many as a variance needs
        tolerance = None if is_fixed else part.ask.tolerance
        rule = Rule(passes, tolerance, self.reached_by_noise, self.couples_rows)
        off = self._deterministic(part, rows_of(parts))
        return Group(rule, statistics, off, [each.rows for each in parts], [each.is_wanted for each in parts])

    def _named(self, quantities: Quantities) -> Answers:
        return {output.name: own for output, own in zip(self.outputs, quantities, strict=True)}


class _TooManyRows(Exception):
    """The device has no room for one pass of so many rows; the footprint's ceiling now allows fewer."""


class _Block:
    """Rows that run together until each has had its passes.

    Others may run behind them, which only make their number round: no statistics know of them. Where the device has
    no memory, fewer passes run at once, then and for whoever asks such questions later.

    Args:
        run: The plan.
        footprint: What it needs.
        parts: The rows.
        step: How much runs in a step.
    """

    def __init__(self, run: Run, footprint: Footprint, parts: Sequence[Part], step: Step | None) -> None:
        self.run, self.footprint, self.step, self.ask = run, footprint, step, parts[0].ask
        rules: dict[tuple[Any, ...], list[int]] = {}
        for place, part in enumerate(parts):
            rules.setdefault(part.rule, []).append(place)
        ordered = [parts[place] for own in rules.values() for place in own]
        self.tensors, self.rows = rows_of(ordered), noise_rows(ordered)
        self.clock = Clock(self.tensors[0].device)
        self.before: Taken | None = None
        if not fits(lambda: self._begin(parts, list(rules.values()))):
            self._allow_fewer_rows()

    def _begin(self, parts: Sequence[Part], rules: Sequence[Sequence[int]]) -> None:
        """Make what all passes share."""
        self.groups = [self.run.group([parts[place] for place in own]) for own in rules]
        self.places = dict(zip(self.groups, rules, strict=True))
        self.tensors = tuple(map(self._filled, self.tensors))
        self.values = self.run.compiled.trunk(self.tensors)

    def steps(self) -> Iterator[dict[int, Quantities]]:
        """Run a chunk a step; give the quantities of the parts that have had their passes, where they were computed."""
        passes = 0
        while self.groups:
            passes = self._run_chunk(passes)
            looked = [(group, group.look(passes)) for group in self.groups]
            found: dict[int, Quantities] = {}
            for group in (group for group, kept in looked if kept is not None):
                found |= {self.places[group][index]: each for index, each in group.answered().items()}
            self._go_on([kept for _, kept in looked])
            yield found
            self._go_on([group.leave() for group in self.groups])

    def _run_chunk(self, first: int) -> int:
        """Run the next passes and return how many have run."""
        while True:
            until = first + self._next_passes(first)
            self.clock.begin()
            if fits(partial(self._take, Draw(self.ask.seed, first, until - first, self.rows, self.spare))):
                self.before = self.clock.end(until - first) or self.before
                return until
            self._allow_fewer_passes(until - first)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of the inputs of the rows that still run, and of the spare ones behind them."""
        return [tuple(each.shape) for each in self.tensors]

    @property
    def spare(self) -> int:
        """How many rows run that nobody asked for."""
        return self.tensors[0].shape[0] - sum(group.rows for group in self.groups)

    def _next_passes(self, first: int) -> int:
        """Return how many passes run next."""
        chunk = self.run.chunk(self.footprint, self.shapes, self.ask.per_row)
        if self.step:
            chunk = min(chunk, self.step.passes(self.shapes[0][0], self.before))
        return min(chunk, *(group.stop - first for group in self.groups))

    def _take(self, draw: Draw) -> None:
        """Run passes and take them into the statistics of all groups, or of none."""
        is_all = len(self.groups) == 1 and not self.spare
        by_output, at, taken = self.run.by_output(self.values, self.shapes, draw), 0, []
        for group in self.groups:
            own = slice(at, at + group.rows)
            chunk = by_output if is_all else [tuple(raw[:, own] for raw in each) for each in by_output]
            taken.append(group.plus(chunk))
            at += group.rows
        for group, statistics in zip(self.groups, taken, strict=True):
            group.take(statistics)

    def _allow_fewer_passes(self, passes: int) -> None:
        """Remember that so many passes had no room: half of them may."""
        if passes == 1:
            self._allow_fewer_rows()
        rows, alone = self.shapes[0][0], self.run.compiled.thinned_for(self.shapes, self.ask.per_row) is not None
        self.footprint.lower(self.footprint.of_passes(rows, passes // 2, alone))

    def _allow_fewer_rows(self) -> NoReturn:
        """Remember that one pass had no room: half of the rows may.

        Raises:
            _TooManyRows: They do not fit.
            torch.OutOfMemoryError: Fewer cannot run.
        """
        rows = self.shapes[0][0]
        if rows == 1 or self.run.couples_rows:
            self.footprint.forget()
            raise torch.OutOfMemoryError
        self.footprint.lower(self.footprint.of_rows(rows // 2))
        raise _TooManyRows

    def _go_on(self, kept: Sequence[Tensor | None]) -> None:
        """Go on with some rows of each group, named by truth values; None where all go on."""
        if all(each is None for each in kept):
            return
        pairs = zip(self.groups, kept, strict=True)
        every = [torch.ones(group.rows, dtype=torch.bool) if each is None else each for group, each in pairs]
        self.groups = [group for group in self.groups if group.rows]
        if self.groups:
            left = torch.cat(every).nonzero().flatten()
            self.rows = None if self.rows is None else [self.rows[place] for place in left.tolist()]
            left = self._filled(left).to(self.tensors[0].device)
            self.tensors = tuple(each[left] for each in self.tensors)
            self.values = self.run.compiled.trunk_of_rows(self.values, self.tensors, left)

    def _filled(self, x: Tensor) -> Tensor:
        """Return a tensor of the rows that are asked for [B, …] with the spare ones behind them."""
        own = x.shape[0]
        rows = self.run.rows_for(own, self.footprint)
        return with_rows(x, rows) if rows > own else x


def _are_ready(receipts: Sequence[Receipt]) -> bool:
    return all(each.is_ready() for each in receipts)


def _joined(blocks: Sequence[Receipt]) -> Quantities:
    """Wait for the quantities of several blocks of rows, and put them behind one another."""
    if len(blocks) == 1:
        return blocks[0].tensors()
    outputs = zip(*(each.tensors() for each in blocks), strict=True)
    return [{name: torch.cat([each[name] for each in several]) for name in several[0]} for several in outputs]
