"""What is accepted and not done: jobs that wait, runs that have begun, and how much work they are expected to be.

It does not know whose turn it is, or what a run does.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Generic

from service.errors import Draining, Overloaded
from service.job import LITTLE_S, Job, Result, Running, comes_before
from service.pace import Pace

_LEAST_WAIT_S = 1.0


class Accepted(Generic[Result]):
    """Jobs and runs, no more of them than may be.

    Args:
        max_wait_s: How many seconds of work may be ahead of a job that is accepted.
        max_jobs: How many jobs may be accepted and not done.

    Attributes:
        waiting: The jobs that wait, in the order in which they came.
        active: The runs that have begun.
        pace: How much longer they take of late than was expected.
        closed: Whether nothing is accepted any more.
    """

    def __init__(self, max_wait_s: float, max_jobs: int) -> None:
        self._max_wait_s, self._max_jobs = max_wait_s, max_jobs
        self.waiting: list[Job[Result]] = []
        self.active: list[Running[Result]] = []
        self.pace = Pace()
        self.closed = False
        self._cost_s = 0.0  # what everything that waits or runs costs

    def __bool__(self) -> bool:
        """Tell whether there is anything."""
        return bool(self.waiting or self.active)

    def __iter__(self) -> Iterator[Job[Result]]:
        """Iterate over the jobs, those that run too."""
        return iter([*self.waiting, *(job for run in list(self.active) for job in run.jobs)])

    @property
    def in_flight(self) -> int:
        """How many jobs have not ended."""
        return sum(not job.future.done() for job in self)

    @property
    def cost_s(self) -> float:
        """How many seconds the work is expected to take, at today's pace."""
        return self._ahead_s(math.inf)

    @property
    def is_little(self) -> bool:
        """Whether nothing runs, and what waits takes little time each."""
        return not self.active and all(job.cost_s <= LITTLE_S for job in list(self.waiting))

    def add(self, job: Job[Result]) -> None:
        """Let a job wait.

        Raises:
            Overloaded: As much is accepted as may be, or its time would be over before its turn.
            Draining: Nothing is accepted any more.
        """
        if self.closed:
            raise Draining("the server is stopping; ask another one, or again later")
        self._check_room(job.cost_s, job.deadline - time.monotonic())
        self.waiting.append(job)
        self._cost_s += job.cost_s

    def check_room(self) -> None:
        """Check that a job as short as the shortest that waits would be accepted now.

        Raises:
            Overloaded: It would not.
        """
        if not self._has_room(math.inf):
            self._check_room(min((job.cost_s for job in list(self.waiting)), default=0.0))

    def _has_room(self, allowed_s: float) -> bool:
        """Tell whether there is room whatever is ahead, without looking at each job."""
        count = len(self.waiting) + sum(len(run.jobs) for run in list(self.active))
        return count < self._max_jobs and self._cost_s * self.pace.times <= min(self._max_wait_s, allowed_s)

    def _check_room(self, cost_s: float, allowed_s: float = math.inf) -> None:
        if self._has_room(allowed_s):
            return
        count, ahead_s = self.in_flight, self._ahead_s(cost_s)
        is_full = count >= self._max_jobs or ahead_s > self._max_wait_s
        if count and (is_full or ahead_s > allowed_s):
            allows = "" if is_full else f", which allows {allowed_s:.3g} s"
            raise Overloaded(
                f"{count} requests are accepted, {ahead_s:.3g} s of work ahead of this one{allows}; ask again later",
                math.ceil(max(ahead_s, _LEAST_WAIT_S)),
            )

    def _ahead_s(self, cost_s: float) -> float:
        """Return how many seconds, at today's pace, the work takes that comes before a job of this cost."""
        waiting = [job for job in list(self.waiting) if comes_before(job.cost_s, cost_s) and not job.future.done()]
        active = [run for run in list(self.active) if comes_before(run.cost_s, cost_s) and run.is_wanted()]
        return (sum(job.cost_s for job in waiting) + sum(run.left_s for run in active)) * self.pace.times

    def drop_unwanted(self) -> list[Job[Result]]:
        """Take out and return the jobs that nobody waits for any more."""
        dropped = [job for job in self.waiting if not job.is_wanted()]
        if dropped:
            self._take_out(dropped)
            self._cost_s -= sum(job.cost_s for job in dropped)
        return dropped

    def begin(self, run: Running[Result]) -> None:
        """Let jobs that wait run."""
        self._take_out(run.jobs)
        self.active.append(run)

    def _take_out(self, jobs: Sequence[Job[Result]]) -> None:
        taken = set(jobs)
        self.waiting = [job for job in self.waiting if job not in taken]

    def end(self, run: Running[Result]) -> None:
        """Let a run be over."""
        self.active.remove(run)
        self._cost_s -= sum(job.cost_s for job in run.jobs)

    def again(self, run: Running[Result]) -> None:
        """Let the jobs of a run that is over and has not answered them wait again, each for a run of its own."""
        left = [job for job in run.jobs if not job.future.done()]
        for job in left:
            job.alone = True
        self.waiting = [*left, *self.waiting]
        self._cost_s += sum(job.cost_s for job in left)
