"""How long questions take, learned from those that were answered; it does not know how they are answered.

A run of R rows and N passes of a kind lasts `call_s` + R · N · rate. What the shortest runs take tells the first, what
the others take beyond it the second, by their size: a thousand small runs say little of what a large one takes.
"""

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Protocol

from service.job import LITTLE_S

_KINDS_KEPT = 256
_CALL_S, _RATE_S = 2 * LITTLE_S, 2e-7  # until anything is known: what takes who knows how long is not little
_FIRST_ROW_PASSES = 1e4  # how many rows × passes that first guess counts for
_MOST_ROW_PASSES = 1e7  # past as many, what was learned counts half, so that a machine may change
_FORGET = 1.02  # the shortest run so far counts as that much longer with every run
_SETTLED_BY = 4  # passes that a tolerance t takes: about this over t², most variances' kurtosis being near 3


class Sized(Protocol):
    """A question, as far as its cost goes."""

    @property
    def kind(self) -> Hashable:
        """What its cost for each row and pass depends on."""

    @property
    def rows(self) -> int:
        """How many rows it has."""

    @property
    def passes(self) -> int:
        """How many passes it runs at most."""

    @property
    def tolerance(self) -> float | None:
        """The error at which its passes end."""


@dataclass
class _Kind:
    """What is known of one kind."""

    call_s: float = math.inf
    seconds: float = _RATE_S * _FIRST_ROW_PASSES
    row_passes: float = _FIRST_ROW_PASSES

    def of(self, row_passes: float) -> float:
        call_s = _CALL_S if math.isinf(self.call_s) else self.call_s
        return call_s + row_passes * self.rate

    @property
    def rate(self) -> float:
        return self.seconds / self.row_passes

    def learn(self, row_passes: float, seconds: float) -> None:
        self.call_s = min(self.call_s * _FORGET, seconds)
        self.seconds += seconds - self.call_s
        self.row_passes += row_passes
        if self.row_passes > _MOST_ROW_PASSES:
            self.seconds, self.row_passes = self.seconds / 2, self.row_passes / 2


class Costs:
    """What each kind of question takes."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[Hashable, _Kind] = OrderedDict()
        self._lock = Lock()

    def of(self, question: Sized) -> float:
        """Return how many seconds a question is expected to take alone."""
        return self._known(question.kind).of(question.rows * _passes(question))

    def row_passes_in(self, seconds: float, question: Sized) -> int:
        """Return how many rows × passes of a question are expected to run in a time, one at least."""
        return max(1, int(seconds / max(self._known(question.kind).rate, 1e-12)))

    def learn(self, questions: Sequence[Sized], seconds: float) -> None:
        """Take what a run took that answered questions of one kind."""
        kind = questions[0].kind
        with self._lock:
            self._kinds.setdefault(kind, _Kind()).learn(sum(each.rows * _passes(each) for each in questions), seconds)
            self._kinds.move_to_end(kind)
            while len(self._kinds) > _KINDS_KEPT:
                self._kinds.popitem(last=False)

    def _known(self, kind: Hashable) -> _Kind:
        return self._kinds.get(kind) or _Kind()


def _passes(question: Sized) -> float:
    if question.tolerance is None:
        return question.passes
    return min(question.passes, _SETTLED_BY / question.tolerance**2)
