"""Some work that somebody waits for, until it ends, fails, or nobody waits any more; it does not know when it runs."""

import math
import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

Result = TypeVar("Result")
_STEP = 4.0  # costs within a factor of so much are alike
_LEAST_S = 1e-6


@dataclass(frozen=True)
class Pending:
    """What a step gives in place of results that are on their way; the next step waits for them.

    Attributes:
        is_ready: Tells whether they are there.
    """

    is_ready: Callable[[], bool]


Steps = Generator[Mapping[int, Result] | Pending, None, None]  # each gives what it led to, by its place in the run


def level_of(cost_s: float) -> int:
    """Return a cost's order of magnitude; what costs about as much has the same."""
    return math.floor(math.log(max(cost_s, _LEAST_S), _STEP))


class Work(Protocol):
    """What a job is of."""

    @property
    def key(self) -> Hashable | None:
        """What jobs have in common that run together; None for one that runs alone."""

    def fits(self, others: Sequence[Any]) -> bool:
        """Tell whether it can run together with others of its key."""


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
        return not self.future.done() and time.monotonic() < self.deadline

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
