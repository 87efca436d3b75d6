"""Rows that end by the same rule and are asked for the same quantities: their statistics, and which of them still run.

It does not know networks or noise.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from service.conditional import ConditionalAccumulator
from service.quantities import Accumulator
from service.tolerance import gather, looks, settled

Statistics = Accumulator | ConditionalAccumulator
Quantities = list[dict[str, Tensor]]  # of each output, [B, …] by name


@dataclass(frozen=True)
class Rule:
    """When a row's passes end.

    Attributes:
        passes: How many it runs at most.
        tolerance: The relative standard error of its variances at which they end; None runs all.
        reached: For each output, whether passes differ.
        couples_rows: Whether all rows end together.
    """

    passes: int
    tolerance: float | None
    reached: tuple[bool, ...]
    couples_rows: bool

    def stops(self) -> Iterator[int]:
        """Yield the numbers of passes at which rows may end."""
        return iter((self.passes,)) if self.tolerance is None else looks(self.passes)

    def ended(self, statistics: Sequence[Statistics], passes: int) -> Tensor | None:
        """Tell of each row [B] whether it ends at a stop; None where all do."""
        if self.tolerance is None or passes == self.passes:
            return None
        done = torch.ones(1, dtype=torch.bool)
        for own, reached in zip(statistics, self.reached, strict=True):
            done = done & settled(*own.spread(), self.tolerance).cpu() if reached else done
        return done.all().expand_as(done) if self.couples_rows else done


class Group:
    """The rows of one or several asks, those of one behind those of another.

    Args:
        rule: When a row's passes end.
        statistics: Those of each output, empty.
        off: Each output [B, …] with everything off, where it was asked for.
        sizes: How many rows each ask has.
        wanted: For each ask, whether anybody still waits for it.

    Attributes:
        rows: How many rows still run.
        stop: The number of passes at which rows may end next.
    """

    def __init__(
        self,
        rule: Rule,
        statistics: Sequence[Statistics],
        off: Sequence[Tensor | None],
        sizes: Sequence[int],
        wanted: Sequence[Callable[[], bool]],
    ) -> None:
        self._rule, self._statistics, self._off, self._wanted = rule, list(statistics), off, wanted
        self._bounds = [*pairwise([sum(sizes[:count]) for count in range(len(sizes) + 1)])]
        self._running: Tensor | None = None  # the places of the rows that still run; None while all do
        self._ended: list[tuple[Tensor | None, Quantities]] = []  # the places of rows, None for all, in order
        self._open = set(range(len(sizes)))  # the asks that have no answer yet
        self._stops = rule.stops()
        self.rows, self.stop = sum(sizes), next(self._stops)

    def plus(self, by_output: Sequence[tuple[Tensor, ...]]) -> list[Statistics]:
        """Return the statistics with a chunk of passes [S, B, …] of each output more; `take` makes them its own."""
        more = [copy(each) for each in self._statistics]
        for own, raw in zip(more, by_output, strict=True):
            own.add(*raw)
        return more

    def take(self, statistics: Sequence[Statistics]) -> None:
        """Go on from statistics that `plus` returned."""
        self._statistics = list(statistics)

    def look(self, passes: int) -> Tensor | None:
        """End the rows that have had their passes, and tell of each that ran whether it goes on [B]; None if all do."""
        if passes < self.stop:
            return None
        done = self._rule.ended(self._statistics, passes)
        if done is None or bool(done.all()):
            count, self.rows = self.rows, 0
            self._end(self._statistics, self._running)
            return torch.zeros(count, dtype=torch.bool)
        self.stop = next(self._stops)
        if not bool(done.any()):
            return None
        self._end([each.of_rows(done) for each in self._statistics], self._places()[done])
        return self._keep(~done)

    def leave(self) -> Tensor | None:
        """Let the rows go that nobody waits for, and tell of each that ran whether it goes on [B]; None if all do."""
        left = {index for index in self._open if not self._wanted[index]()}
        if not left:
            return None
        self._open -= left
        kept = torch.ones(self.rows, dtype=torch.bool)
        for index in left:
            kept &= ~self._is_of(index, self._places())
        return self._keep(kept)

    def answered(self) -> dict[int, Quantities]:
        """Return the quantities of each ask whose last rows have ended since this was called, by its index."""
        ended = {index for index in self._open if not self._runs(index)}
        self._open -= ended
        return {index: self._found(index) for index in ended}

    def _runs(self, index: int) -> bool:
        return self.rows > 0 and (self._running is None or bool(self._is_of(index, self._running).any()))

    def _found(self, index: int) -> Quantities:
        first, end = self._bounds[index]
        parts = []
        for places, quantities in self._ended:
            if places is None:
                whole = len(self._bounds) == 1
                return quantities if whole else [of_rows(each, slice(first, end)) for each in quantities]
            own = self._is_of(index, places)
            if bool(own.any()):
                parts.append((places[own], [of_rows(each, own) for each in quantities]))
        return gather(parts)

    def _is_of(self, index: int, places: Tensor) -> Tensor:
        first, end = self._bounds[index]
        return (places >= first) & (places < end)

    def _places(self) -> Tensor:
        return torch.arange(self.rows) if self._running is None else self._running

    def _keep(self, kept: Tensor) -> Tensor:
        self._running = self._places()[kept]
        self._statistics = [each.of_rows(kept) for each in self._statistics]
        self.rows = len(self._running)
        return kept

    def _end(self, statistics: Sequence[Statistics], places: Tensor | None) -> None:
        own = self._off if places is None else [None if each is None else each[places] for each in self._off]
        finished = [one.finish(plain) for one, plain in zip(statistics, own, strict=True)]
        self._ended.append((places, finished))


def of_rows(quantities: dict[str, Tensor], rows: Tensor | slice) -> dict[str, Tensor]:
    """Return the quantities of some rows."""
    return {name: values[rows] for name, values in quantities.items()}
