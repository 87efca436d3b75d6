"""How long questions take, learned from those that were answered; it does not know how they are answered.

A run of R rows and N passes is taken to last `call_s` + R · N · rate, the rate being that of the last runs of its kind,
or of any kind while there was none.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock
from typing import Protocol

_KINDS_KEPT = 256
_CALL_S = 5e-4
_FIRST_RATE_S = 2e-6  # of a row and pass, until anything was measured
_WEIGHT = 0.3  # of the newest run in the average
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


class Costs:
    """What a row and pass of each kind of question takes."""

    def __init__(self) -> None:
        self._rates: OrderedDict[Hashable, float] = OrderedDict()
        self._any_rate = _FIRST_RATE_S
        self._lock = Lock()

    def of(self, question: Sized) -> float:
        """Return how many seconds a question is expected to take alone."""
        return _CALL_S + question.rows * _passes(question) * self._rate(question.kind)

    def row_passes_in(self, seconds: float, question: Sized) -> int:
        """Return how many rows × passes of a question are expected to run in a time, one at least."""
        return max(1, int(seconds / self._rate(question.kind)))

    def learn(self, questions: Sequence[Sized], seconds: float) -> None:
        """Take what a run took that answered questions of one kind."""
        row_passes = sum(each.rows * _passes(each) for each in questions)
        rate = max(0.0, seconds - _CALL_S) / max(1, row_passes)
        kind = questions[0].kind
        with self._lock:
            before = self._rates.get(kind, rate)
            self._rates[kind] = self._any_rate = before + _WEIGHT * (rate - before)
            self._rates.move_to_end(kind)
            while len(self._rates) > _KINDS_KEPT:
                self._rates.popitem(last=False)

    def _rate(self, kind: Hashable) -> float:
        return self._rates.get(kind, self._any_rate)


def _passes(question: Sized) -> float:
    if question.tolerance is None:
        return question.passes
    return min(question.passes, _SETTLED_BY / question.tolerance**2)
