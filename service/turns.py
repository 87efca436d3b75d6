"""Whose turn it is: what costs little first, and what costs more often enough; it does not know what a turn is of.

Of what costs about as much, the one that came first, on whichever sides of the line between two orders of magnitude
they are: what is expected of equal work varies. An order of magnitude of costs that has had no turn for a while gets
one, so that none starves.
"""

from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from service.job import comes_before

_AGE_S = 1.0  # the longest that an order of magnitude waits for a step, or
_AGE_STEPS = 8.0  # so many times as long as its last one: of a thread that is never free it has a ninth at least


class Waiting(Protocol):
    """What waits for its turn."""

    @property
    def level(self) -> int:
        """Its cost's order of magnitude."""

    @property
    def cost_s(self) -> float:
        """How long it is expected to take."""

    @property
    def arrived(self) -> float:
        """When it came."""


_Waiting = TypeVar("_Waiting", bound=Waiting)


class Turns(Generic[_Waiting]):
    """The turns that orders of magnitude have had."""

    def __init__(self) -> None:
        self._began: dict[int, float] = {}  # when one of these began its last turn
        self._took: dict[int, float] = {}  # and how long it was

    def begins(self, level: int, now: float) -> None:
        """Take note of a turn that begins."""
        self._began[level] = now

    def ended(self, level: int, took_s: float) -> None:
        """Take note of how long one was."""
        self._took[level] = took_s

    def head(self, waiting: Iterable[_Waiting], now: float) -> _Waiting | None:
        """Return what comes first; None where nothing waits."""
        in_order = sorted(waiting, key=lambda each: each.arrived)
        heads: dict[int, _Waiting] = {}
        for each in in_order:
            heads.setdefault(each.level, each)
        if not heads:
            return None
        starved = min(heads, key=lambda level: self._due(level, heads[level]))
        if now > self._due(starved, heads[starved]):
            return heads[starved]
        least_s = min(each.cost_s for each in in_order)
        return next(each for each in in_order if comes_before(each.cost_s, least_s))

    def _due(self, level: int, head: _Waiting) -> float:
        """Return when an order of magnitude is to have a turn, whatever costs less."""
        patience_s = min(_AGE_S, _AGE_STEPS * self._took.get(level, _AGE_S))
        return max(self._began.get(level, 0.0), head.arrived) + patience_s
