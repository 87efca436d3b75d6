"""Rows of several asks that run together, one chunk of passes after the other; it does not know who asked."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from service.clock import Clock, Taken
from service.graph.drawing import Draw
from service.graph.footprint import Footprint, fits
from service.graph.layout import with_rows
from service.graph.tuned import is_round, round_factors
from service.group import Quantities
from service.part import Part, Step, noise_rows, rows_of

if TYPE_CHECKING:
    from service.run import Run


class TooManyRows(Exception):
    """The device has no room for one pass of so many rows; the footprint's ceiling now allows fewer."""


class Block:
    """Rows that run together until each has had its passes.

    Others may run behind them, which only make their number round: no statistics know of them. Where the device has
    no memory, fewer passes run at once, then and for whoever asks such questions later.

    Args:
        run: The plan.
        footprint: What it needs.
        parts: The rows.
        step: How much runs in a step.
    """

    def __init__(self, run: "Run", footprint: Footprint, parts: Sequence[Part], step: Step | None) -> None:
        self.run, self.footprint, self.step, self.ask = run, footprint, step, parts[0].ask
        rules: dict[tuple[Any, ...], list[int]] = {}
        for place, part in enumerate(parts):
            rules.setdefault(part.rule, []).append(place)
        ordered = [parts[place] for own in rules.values() for place in own]
        self.tensors, self.rows = rows_of(ordered), noise_rows(ordered)
        self.clock = Clock(self.tensors[0].device)
        self.before: Taken | None = None
        self.passes, self.until = (
            0,
            (0, 0),
        )  # of the chunk before, whatever a step allowed; its rows, and where they stop
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
        """Return how many passes run next: about as many as in each chunk until rows may end."""
        rows, stop = self.shapes[0][0], min(group.stop for group in self.groups)
        left = stop - first
        most = min(left, self.run.chunk(self.footprint, self.shapes, self.ask.per_row))
        if self.passes > most or self.until != (rows, stop):
            self.passes, self.until = chunk_of(left, most, rows), (rows, stop)
        return min(self.passes, self.step.passes(rows, self.before)) if self.step else self.passes

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
        self.run.allow_fewer_passes(self.footprint, self.shapes, passes, self.ask.per_row)

    def _allow_fewer_rows(self) -> NoReturn:
        """Remember that one pass had no room: half of the rows may.

        Raises:
            TooManyRows: They do not fit.
            torch.OutOfMemoryError: Fewer cannot run.
        """
        rows = self.shapes[0][0]
        if rows == 1 or self.run.couples_rows:
            self.footprint.forget()
            raise torch.OutOfMemoryError
        self.footprint.lower(self.footprint.of_rows(rows // 2))
        raise TooManyRows

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


def chunk_of(left: int, most: int, rows: int) -> int:
    """Return how many of the passes that are left are a chunk, if all chunks are to be about alike.

    Operators are fastest where passes times rows are a round number, and best are equal chunks, for the memory that one
    leaves is then what the next one needs. Somewhat fewer passes may be, where nothing is round from those that are
    alike to the most; not otherwise, for each chunk has its own cost. What is left is one chunk where it may be.

    Args:
        left: The passes that are left.
        most: How many may run at once.
        rows: How many rows each has.
    """
    if left <= most:
        return left
    alike = -(-left // -(-left // most))
    factors = round_factors(rows, most)
    more = [each for each in factors if each >= alike]
    fewer = [each for each in reversed(factors) if each < alike < 1.5 * each]
    return _dividing(left, more, rows) or _dividing(left, fewer, rows) or alike


def _dividing(left: int, several: Sequence[int], rows: int) -> int | None:
    """Return the first that leaves nothing over, or else a round number of rows; None if none does."""
    even = (each for each in several if not left % each)
    rest = (each for each in several if is_round(left % each * rows))
    return next(even, None) or next(rest, None)
