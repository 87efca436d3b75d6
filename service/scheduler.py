"""Concurrent jobs → runs, one step at a time in a thread; it knows no tensors' meaning and no HTTP.

A job waits until the thread is free; jobs of one key that wait then and cost about as much run together, so that a run
holds what queued while the last one worked and nobody waits on purpose; a long run takes none that would overtake
others. A long run is set aside between two of its steps where something cheaper waits. Who runs with others is answered
once its own steps are done. What takes less than waking a thread may be done in the thread that submits it, a little at
a time; whoever steps has the turn, so that there is one step at a time.

A step may launch work and give what tells when its results are there. Meanwhile one more run is begun, so that the
device goes on at once, and no more: what else comes runs together. Further steps of a run wait for the device
themselves, so results that are on their way are waited for first, and answered as soon as they are there.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from threading import Condition, Lock, Thread
from typing import Generic

from service.accepted import Accepted
from service.errors import DeadlineExceeded, Draining
from service.job import Job, Pending, Result, Running, Steps, Work
from service.together import together
from service.turns import Turns

_log = logging.getLogger("thinnet")
_LOOK_S = 0.02
_WHILE_S = 1e-2  # for which little jobs hold the loop up, which a thread that is woken would do as well
_MOST_PENDING = 2  # runs whose results are on their way: one is computed, one is next


class Scheduler(Generic[Result]):
    """One step of a run at a time, in a thread of its own but for what is little.

    Args:
        start: Makes the steps of a run from its jobs; they lead to a result for each that is not given up.
        max_wait_s: How many seconds of work may be ahead of a job that is accepted.
        max_jobs: How many jobs may be accepted and not done.
        finished: Called with the jobs of a run that has ended well, and its seconds, before the last are answered.
        prepare: Called first in the thread that computes.
    """

    def __init__(
        self,
        start: Callable[[Sequence[Job[Result]]], Steps[Result]],
        max_wait_s: float = math.inf,
        max_jobs: int = 1 << 30,
        finished: Callable[[Sequence[Job[Result]], float], None] = lambda jobs, spent_s: None,
        prepare: Callable[[], None] = lambda: None,
    ) -> None:
        self._start, self._finished, self._prepare = start, finished, prepare
        self._accepted: Accepted[Result] = Accepted(max_wait_s, max_jobs)
        self._turns: Turns[Running[Result] | Job[Result]] = Turns()
        self._arrived = 0.0  # when the last results that were on their way were there
        self._changed, self._turn = Condition(), Lock()
        self._moved = time.monotonic()
        self._thread: Thread | None = None

    @property
    def closed(self) -> bool:
        """Whether nothing is accepted any more."""
        return self._accepted.closed

    @property
    def in_flight(self) -> int:
        """How many jobs are accepted and have not ended."""
        return self._accepted.in_flight

    @property
    def queued_cost_s(self) -> float:
        """How many seconds the work that is accepted and not done is expected to take, at today's pace."""
        return self._accepted.cost_s

    @property
    def stalled_s(self) -> float:
        """For how many seconds the thread has not moved though it had work."""
        return time.monotonic() - self._moved if self.in_flight else 0.0

    def submit(self, work: Work, cost_s: float, timeout_s: float = math.inf, *, wake: bool = True) -> Job[Result]:
        """Accept work.

        Args:
            work: What is to be done.
            cost_s: How long it is expected to take alone.
            timeout_s: After how many seconds it is given up.
            wake: Whether the thread begins now; else `attend` is to be called, which may be for several together.

        Raises:
            Overloaded: As much is accepted as may be.
            Draining: Nothing is accepted any more.
        """
        job: Job[Result] = Job(work, cost_s, time.monotonic() + timeout_s)
        with self._changed:
            if not self._accepted:
                self._moved = time.monotonic()
            self._accepted.add(job)
            if wake:
                self._wake()
        return job

    def attend(self) -> bool:
        """Have done what was submitted: here and now, for a while, where that is sooner done than a thread woken.

        Returns:
            Whether there is more of that kind: then this is to be called again, once others have had their turn.
        """
        if not self._accepted.is_little or not self._turn.acquire(blocking=False):
            self._leave_to_thread()
            return False
        try:
            self._do_little(time.monotonic() + _WHILE_S)
        finally:
            self._turn.release()
        if not self._accepted.is_little:
            self._leave_to_thread()
            return False
        return bool(self._accepted.waiting)

    def _leave_to_thread(self) -> None:
        with self._changed:
            if self._accepted:
                self._wake()

    def _do_little(self, until: float) -> None:
        """Do what waits, and end what was begun even if it takes longer."""
        while self._accepted and all(run.pending for run in self._accepted.active):
            left_s = until - time.monotonic()
            if left_s <= 0 and not self._accepted.active:
                return
            self._advance(left_s)

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = Thread(target=self._work, name="compute", daemon=True)
            self._thread.start()
        self._changed.notify()

    def check_room(self) -> None:
        """Check that a job as short as the shortest that waits would be accepted now.

        Raises:
            Overloaded: It would not.
        """
        self._accepted.check_room()

    def close(self) -> None:
        """Accept nothing more; what was accepted goes on."""
        with self._changed:
            self._accepted.closed = True
            self._changed.notify()

    async def drain(self, timeout_s: float) -> None:
        """Accept nothing more, and wait until what was accepted has ended, or fails when the time is over."""
        self.close()
        end = time.monotonic() + timeout_s
        while self.in_flight and time.monotonic() < end:
            await asyncio.sleep(_LOOK_S)
        self.give_up(Draining("the server has ended; ask another one"))

    def give_up(self, error: Exception) -> None:
        """Let whatever has not ended end in an error."""
        with self._changed:
            for job in self._accepted:
                job.fail(error)
            self._changed.notify()

    def _work(self) -> None:
        self._prepare()
        while True:
            with self._changed:
                while not self._accepted:
                    if self.closed:
                        return
                    self._changed.wait()
            with self._turn:
                self._advance()

    def _advance(self, most_s: float = math.inf) -> None:
        """Take the next step, in which as many jobs begin as take no longer; whoever does has the turn."""
        with self._changed:
            self._moved = time.monotonic()
            run = self._next(most_s)
        if run is not None:
            self._step(run)

    def _next(self, most_s: float) -> Running[Result] | None:
        """Return the run that steps next, made of waiting jobs where these come first."""
        for job in self._accepted.drop_unwanted():
            job.fail(_too_late())
        active = self._accepted.active
        pending = sorted((run for run in active if run.pending), key=lambda run: run.launched)
        if arrived := next((run for run in pending if run.is_ready()), None):
            return arrived
        now, begins = time.monotonic(), most_s > 0 and len(pending) < _MOST_PENDING
        ready: list[Running[Result] | Job[Result]] = [*(run for run in active if not run.pending)]
        ready += self._accepted.waiting
        head = self._turns.head(ready, now) if begins else None
        if pending and not isinstance(head, Job):
            return pending[0]
        if head is None:
            return None
        self._turns.begins(head.level, now)
        return self._begin(head, now, most_s) if isinstance(head, Job) else head

    def _begin(self, first: Job[Result], now: float, most_s: float) -> Running[Result]:
        jobs = together(first, self._accepted.waiting, most_s)
        for job in jobs:
            job.queue_s, job.together = now - job.arrived, len(jobs)
        run = Running(jobs, self._start(jobs))
        self._accepted.begin(run)
        return run

    def _step(self, run: Running[Result]) -> None:
        began, found = time.monotonic(), None
        was_pending, run.pending = run.pending, None
        try:
            if run.is_wanted():
                found = next(run.steps, None)
        except Exception as error:  # whatever a network raises, it ends this run alone
            self._fail(run, error)
            return
        now = time.monotonic()
        if was_pending:
            began = max(run.launched, self._arrived)  # before, what was computed was another's
            self._arrived = now
        run.spent_s += now - began
        self._turns.ended(run.level, now - began)
        if isinstance(found, Pending):
            run.pending, run.launched = found, now
        elif found is None:
            self._end(run)
        else:
            self._answer(run, found)

    def _answer(self, run: Running[Result], found: Mapping[int, Result]) -> None:
        run.answered += len(found)
        if run.answered == len(run.jobs):
            self._end_well(run)
        for place, result in found.items():
            run.jobs[place].compute_s = run.spent_s
            run.jobs[place].end(result)

    def _end_well(self, run: Running[Result]) -> None:
        self._remove(run)
        self._accepted.pace.learn(sum(job.cost_s for job in run.jobs), run.spent_s)
        try:
            self._finished(run.jobs, run.spent_s)
        except Exception:  # who looks on must not end the thread
            _log.exception("what follows a run failed")

    def _end(self, run: Running[Result]) -> None:
        """End a run that nobody waits for any more."""
        run.steps.close()
        self._remove(run)
        for job in run.jobs:
            job.fail(_too_late())

    def _fail(self, run: Running[Result], error: Exception) -> None:
        """Let a run's only job fail, or try each of several by itself: one of them must not fail the others."""
        self._remove(run)
        if len(run.jobs) == 1:
            run.jobs[0].fail(error)
            return
        with self._changed:
            self._accepted.again(run)

    def _remove(self, run: Running[Result]) -> None:
        with self._changed:
            self._accepted.end(run)


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("no answer within the time allowed; ask for fewer rows or passes, or allow more time")
