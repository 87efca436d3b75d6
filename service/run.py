"""Run a plan's passes over rows, in blocks of rows and chunks of passes that fit into memory, and gather statistics.

Rows of several asks run together where their noise is the same; each keeps its own passes, quantities and tolerance. It
does not know who asked or what else is running.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from service.ask import Ask
from service.conditional import ConditionalAccumulator
from service.datasheet import MIN_PASSES
from service.errors import InvalidInput, TooLarge
from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.footprint import Footprint
from service.graph.nodes import returned, value_of
from service.graph.rates import measured
from service.group import Group, Quantities, Rule, Statistics
from service.job import Steps
from service.quantities import Accumulator, needs_samples
from service.signature import Output

Answers = dict[str, dict[str, Tensor]]
_OUTSIDE = "index out of range in self"  # torch's words on the CPU


def _always() -> bool:
    return True


@dataclass(eq=False)
class Part:
    """Rows of one ask.

    Attributes:
        tensors: The inputs [B, …].
        ask: How many passes, and their noise.
        wanted: The quantities of each output.
        first_row: Index of the first row in its ask.
        is_wanted: Whether anybody still waits for it.
    """

    tensors: tuple[Tensor, ...]
    ask: Ask
    wanted: tuple[tuple[str, ...], ...]
    first_row: int = 0
    is_wanted: Callable[[], bool] = _always

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.tensors[0].shape[0]

    @property
    def rule(self) -> tuple[Any, ...]:
        """What rows have in common whose statistics are taken together."""
        return self.ask.passes, self.ask.tolerance, self.wanted

    def block(self, at: int, rows: int) -> "Part":
        """Return some neighbouring rows."""
        return replace(self, tensors=tuple(x[at : at + rows] for x in self.tensors), first_row=self.first_row + at)


@dataclass(frozen=True)
class Step:
    """How much may run before others get their turn.

    Attributes:
        row_passes: Rows × passes of the first step, and rows of any.
        seconds: How long a step should take, one pass at least.
    """

    row_passes: int
    seconds: float

    def passes(self, rows: int, before: tuple[int, float] | None) -> int:
        """Return the most passes of some rows in the next step, a power of two so that noise is found again.

        Args:
            rows: How many.
            before: How many passes the step before ran, and its seconds.
        """
        fit = self.row_passes / rows if before is None else before[0] * min(4.0, self.seconds / before[1])
        return 1 << max(0, int(fit).bit_length() - 1)


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
        suffix, around = footprint.suffix, footprint.around
        row = max(1, footprint.trunk_row, suffix.row + around.row + footprint.kept_row)
        free = self.memory_bytes - suffix.fixed - around.fixed
        if self.couples_rows:
            return part.rows
        return max(1, min(free // row, step.row_passes if step else free))

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
        """
        try:
            yield from self._steps(parts, step)
        except IndexError as error:
            if _OUTSIDE not in str(error):
                raise
            raise InvalidInput(
                "the network looks up numbers of the inputs in a table that is shorter; give smaller ones, none below 0"
            ) from None

    def _steps(self, parts: Sequence[Part], step: Step | None) -> Steps[Answers]:
        footprint = self.compiled.footprint(parts[0].tensors, parts[0].ask.per_row)
        if len(parts) == 1:
            yield from self._in_blocks(parts[0], footprint, step)
            return
        for found in _Block(self, footprint, parts, step).steps():
            yield {place: self._named(each) for place, each in found.items()}

    def _in_blocks(self, part: Part, footprint: Footprint, step: Step | None) -> Steps[Answers]:
        size, blocks = self.rows_together(part, step), list[Quantities]()
        for at in range(0, part.rows, size):
            own = part if size >= part.rows else part.block(at, size)
            for found in _Block(self, footprint, [own], step).steps():
                blocks += found.values()
                yield {0: self._named(_joined(blocks))} if len(blocks) * size >= part.rows else {}
            if len(blocks) * size <= at:
                return  # nobody waits any more

    def reached_by_noise(self) -> list[bool]:
        """Tell for each output whether passes differ."""
        return [any(self.compiled.stochastic[index :: len(self.outputs)]) for index in range(len(self.outputs))]

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
        with torch.inference_mode():
            off: tuple[Tensor, ...] = self.captured.program.graph(*tensors)
        return off

    def chunk(self, footprint: Footprint, shapes: Sequence[tuple[int, ...]], per_row: bool) -> int:
        """Return how many passes of a block of rows run together: as many as the cache holds, and memory."""
        rows = shapes[0][0]
        inside, around = footprint.suffix.of(rows), footprint.around.of(rows)
        free = self.memory_bytes - footprint.kept_row * rows
        together, in_memory = max(1, inside), free // max(1, inside + around)
        if self.compiled.thinned_for(shapes, per_row):  # what is inside a pass is gone before the next one
            together, in_memory = max(1, around), (free - inside) // max(1, around)
        return max(1, min(measured().cache_bytes // together, in_memory))

    def group(self, parts: Sequence[Part]) -> Group:
        """Return the statistics, still empty, of parts that end by the same rule."""
        part, is_fixed = parts[0], not any(self.compiled.stochastic)
        kind = ConditionalAccumulator if part.ask.integrates else Accumulator
        statistics: list[Statistics] = [kind(*each) for each in zip(self.outputs, part.wanted, strict=True)]
        passes = MIN_PASSES if is_fixed else part.ask.passes  # equal ones, as many as a variance needs
        tolerance = None if is_fixed else part.ask.tolerance
        rule = Rule(passes, tolerance, tuple(self.reached_by_noise()), self.couples_rows)
        off = self._deterministic(part, _together(parts))
        return Group(rule, statistics, off, [each.rows for each in parts], [each.is_wanted for each in parts])

    def _named(self, quantities: Quantities) -> Answers:
        return {output.name: own for output, own in zip(self.outputs, quantities, strict=True)}


class _Block:
    """Rows that run together until each has had its passes.

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
        self.tensors, self.rows = _together(ordered), _noise_rows(ordered)
        self.groups = [run.group([parts[place] for place in own]) for own in rules.values()]
        self.places = dict(zip(self.groups, rules.values(), strict=True))
        self.values = run.compiled.trunk(self.tensors)
        self.before: tuple[int, float] | None = None  # how many passes the last step ran, and its seconds

    def steps(self) -> Steps[Quantities]:
        """Run a chunk a step; give the quantities of the parts that have had their passes."""
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
        shapes = [tuple(each.shape) for each in self.tensors]
        began, chunk = perf_counter(), self.run.chunk(self.footprint, shapes, self.ask.per_row)
        if self.step:
            chunk = min(chunk, self.step.passes(shapes[0][0], self.before))
        until = min(first + chunk, *(group.stop for group in self.groups))
        by_output = self.run.by_output(self.values, shapes, Draw(self.ask.seed, first, until - first, self.rows))
        at = 0
        for group in self.groups:
            own = slice(at, at + group.rows)
            is_all = len(self.groups) == 1
            group.add(by_output if is_all else [tuple(raw[:, own] for raw in each) for each in by_output])
            at += group.rows
        self.before = until - first, perf_counter() - began
        return until

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
            left = left.to(self.tensors[0].device)
            self.tensors = tuple(each[left] for each in self.tensors)
            self.values = self.run.compiled.trunk_of_rows(self.values, self.tensors, left)


def _together(parts: Sequence[Part]) -> tuple[Tensor, ...]:
    """Return the rows of several parts behind one another."""
    if len(parts) == 1:
        return parts[0].tensors
    return tuple(torch.cat(each) for each in zip(*(part.tensors for part in parts), strict=True))


def _noise_rows(parts: Sequence[Part]) -> Sequence[int] | None:
    """Return the indices that the rows' noise depends on; None where it depends on none."""
    several = [part.ask.rows(part.first_row, part.rows) for part in parts]
    if len(several) == 1 or several[0] is None:
        return several[0]
    return [row for each in several for row in each or ()]


def _joined(blocks: Sequence[Quantities]) -> Quantities:
    """Put the quantities of several blocks of rows behind one another."""
    if len(blocks) == 1:
        return blocks[0]
    outputs = zip(*blocks, strict=True)
    return [{name: torch.cat([each[name] for each in several]) for name in several[0]} for several in outputs]
