"""Some work that somebody waits for, until it ends, fails, or nobody waits any more, and works that run together.

It does not know when they run.
"""

import math
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

Result = TypeVar("Result")
LITTLE_S = 3e-3  # what takes no longer is done as it came
_ALIKE = 4.0  # costs within a factor of so much are about the same


@dataclass(frozen=True)
class Pending:
    """What a step gives in place of results that are on their way; the next step waits for them.

    Attributes:
        is_ready: Tells whether they are there.
    """

    is_ready: Callable[[], bool]


Steps = Generator[Mapping[int, Result] | Pending, None, None]  # each gives what it led to, by its place in the run


def level_of(cost_s: float) -> int:
    """Return a cost's order of magnitude; all that is little has the same."""
    return 0 if cost_s <= LITTLE_S else 1 + math.floor(math.log(cost_s / LITTLE_S, _ALIKE))


def comes_before(cost_s: float, other_s: float) -> bool:
    """Tell whether what costs so much and came first comes before another: it costs about as much, or less."""
    return cost_s <= _ALIKE * max(LITTLE_S, other_s)


def are_alike(cost_s: float, other_s: float) -> bool:
    """Tell whether two costs are about the same, on whichever sides of a line between orders of magnitude."""
    return comes_before(cost_s, other_s) and comes_before(other_s, cost_s)


class Work(Protocol):
    """What a job is of."""

    @property
    def key(self) -> Hashable | None:
        """What jobs have in common that run together; None for one that runs alone."""

    def fits(self, others: Sequence[Any]) -> bool:
        """Tell whether it can run together with others of its key."""


def is_wanted(future: "Future[Any]", deadline: float) -> bool:
    """Tell whether anybody still waits for what is to be there by a deadline."""
    return not future.done() and time.monotonic() < deadline


@dataclass(eq=False)
class Job(Generic[Result]):
    """Some work that somebody waits for.

    Attributes:
        work: What is to be done.
        cost_s: How long it is expected to take alone.
        deadline: When it is given up, by `time.monotonic`.
        arrived: When it came.
        future: Its result.
        alone: Whether it must not run with others.
        queue_s: How long it waited for its first step.
        compute_s: How long the steps of its run took until it had its result.
        together: How many jobs its run had.
        level: Its cost's order of magnitude.
    """

    work: Any
    cost_s: float
    deadline: float
    arrived: float = field(default_factory=time.monotonic)
    future: "Future[Result]" = field(default_factory=Future)
    alone: bool = False
    queue_s: float = 0.0
    compute_s: float = 0.0
    together: int = 1
    level: int = field(init=False)

    def __post_init__(self) -> None:
        self.level = level_of(self.cost_s)

    def is_wanted(self) -> bool:
        """Tell whether anybody still waits for it."""
        return is_wanted(self.future, self.deadline)

    @property
    def wish(self) -> Callable[[], bool]:
        """What tells its own work the same: it does not hold the job, so both are gone without the collector."""
        return partial(is_wanted, self.future, self.deadline)

    def cancel(self) -> None:
        """Give it up: nobody waits any more."""
        self.future.cancel()

    def fail(self, error: BaseException) -> None:
        """Let it end in an error, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_exception(error)

    def end(self, result: Result) -> None:
        """Let it end in a result, unless it has ended."""
        with suppress(InvalidStateError):
            self.future.set_result(result)


@dataclass(eq=False)
class Running(Generic[Result]):
    """Jobs that run together, the one that came first in front.

    Attributes:
        jobs: They.
        steps: What leads to their results.
        spent_s: How long it took so far.
        answered: How many have their results.
        pending: Results that are on their way.
        launched: Since when, by `time.monotonic`.
    """

    jobs: list[Job[Result]]
    steps: Steps[Result]
    spent_s: float = 0.0
    answered: int = 0
    pending: Pending | None = None
    launched: float = 0.0

    @property
    def level(self) -> int:
        """The order of magnitude of their cost."""
        return self.jobs[0].level

    @property
    def cost_s(self) -> float:
        """What the first of them is expected to take."""
        return self.jobs[0].cost_s

    @property
    def arrived(self) -> float:
        """When the first of them came."""
        return self.jobs[0].arrived

    @property
    def left_s(self) -> float:
        """How much longer it is expected to take."""
        return max(0.0, sum(job.cost_s for job in self.jobs) - self.spent_s)

    def is_wanted(self) -> bool:
        """Tell whether anybody still waits for one of them."""
        return any(job.is_wanted() for job in self.jobs)

    def is_ready(self) -> bool:
        """Tell whether its next step waits for no results, be it that nobody does any more."""
        try:
            return self.pending is None or self.pending.is_ready() or not self.is_wanted()
        except Exception:  # whatever a device raises, the step will raise it too, and end this run alone
            return True
