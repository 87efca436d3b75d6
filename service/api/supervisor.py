"""Keep the workers of a server alive: fork, watch, replace, drain, change generations; it knows no HTTP and no models.

    SIGTERM, SIGINT     workers finish what they accepted, then code 0; a second one ends at once, code 128 + its number
    SIGHUP              a new generation beside the old one, which ends once the new one is ready
    a worker ends       another is forked at once; after more than 5 ends in a minute ever later

One thread, and no handlers: signals are blocked and waited for, so nothing is interrupted and none is missed; as
process 1 of a container too, where it also reaps what others leave.
"""

import gc
import logging
import os
import signal
import time
from collections.abc import Iterator

from service.api.generation import CANNOT_START, ENDING, Deaths, Generation, Interrupted, Job, Process, forked, how
from service.api.heartbeats import Heartbeats, State
from service.errors import ThinnetError

RETIRE = signal.SIGUSR1
_HEEDED = (*ENDING, signal.SIGHUP, signal.SIGCHLD)
_TICK_S, _RETRY_S, _START_S = 0.25, 1.0, 600.0
_COLLECT_AFTER = 10_000  # more containers made than gone; Python's own choice is 700
_log = logging.getLogger("thinnet")


class Supervisor:
    """The process that holds the workers of a server.

    Args:
        job: What the first generation does.
        table: How workers are; it says how many there are.
        drain_s: How long workers may take to end.
        stall_s: How long a worker may make no progress.
    """

    def __init__(self, job: Job, table: Heartbeats, drain_s: float, stall_s: float) -> None:
        self._table, self._drain_s, self._stall_s = table, drain_s, stall_s
        self._deaths = Deaths()
        self._current = self._generation(0, job)
        self._next: Generation | None = None
        self._old: Generation | None = None
        self._rehearsal = 0
        self._asked_to_renew = self._stopping = self._announced = False
        self._code = 0
        self._looked = time.monotonic()

    def run(self) -> int:
        """Keep the workers until told to end and return the exit code."""
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _HEEDED)
        self._freeze()
        try:
            while not (self._stopping and not self._everyone()):
                self._tend()
                found = signal.sigtimedwait(_HEEDED, self._pause_s())
                if found is not None:
                    self._heed(found.si_signo)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        return self._code

    def _heed(self, number: int) -> None:
        if number in ENDING and self._stopping:
            self._code = 128 + number
            self._end(signal.SIGKILL)
        elif number in ENDING:
            self._stop()
        elif number == signal.SIGHUP:
            self._asked_to_renew = True

    def _stop(self) -> None:
        self._stopping = True
        self._current.job.ended()
        self._end(signal.SIGTERM)
        if self._rehearsal:
            os.kill(self._rehearsal, signal.SIGKILL)

    def _tend(self) -> None:
        """Do what is due: once a tick, after every signal, and between models while they are read again."""
        self._reap()
        self._watch()
        if not self._stopping:
            self._fork_due()
            self._move()

    def _pause_s(self) -> float:
        due = [at - time.monotonic() for each in self._generations() for at in each.waiting.values()]
        return max(0.0, min([_TICK_S, *due]))

    def _generations(self) -> Iterator[Generation]:
        yield from (each for each in (self._current, self._next, self._old) if each is not None)

    def _everyone(self) -> list[tuple[Generation, int, Process]]:
        return [(each, slot, process) for each in self._generations() for slot, process in each.running.items()]

    def _generation(self, number: int, job: Job) -> Generation:
        now = time.monotonic()
        return Generation(number, job, dict.fromkeys(self._table.slots(number), now))

    # Workers begin

    def _fork_due(self) -> None:
        now = time.monotonic()
        for generation in (self._current, self._next):
            for slot, at in list(generation.waiting.items() if generation else ()):
                if generation and at <= now:
                    self._begin(generation, slot)

    def _begin(self, generation: Generation, slot: int) -> None:
        self._table.mark(slot, State.STARTING)  # before it can say that it is ready
        try:
            pid = forked(lambda: generation.job(self._table.pulse(slot)), self._mask)
        except OSError as error:  # no memory or no process left
            generation.waiting[slot] = time.monotonic() + _RETRY_S
            _log.error("no worker can be forked: %s; again in %.0f s", error.strerror, _RETRY_S)
            return
        self._table.seat(slot, pid)
        del generation.waiting[slot]
        generation.running[slot] = Process(pid, time.monotonic())

    def _freeze(self) -> None:
        """Keep the collector from writing to what workers share with this process, and from looking often.

        Nearly all that a request makes is gone without it.
        """
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECT_AFTER)

    # Workers end

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid == self._rehearsal:
                self._rehearsed(status)
            for generation, slot, process in self._everyone():
                if process.pid == pid:
                    self._lost(generation, slot, status)

    def _lost(self, generation: Generation, slot: int, status: int) -> None:
        process = generation.running.pop(slot)
        self._table.mark(slot, State.EMPTY)
        self._table.seat(slot, 0)
        generation.job.lost(process.pid)
        if self._stopping or generation is self._old:
            return
        if generation is self._next:
            _log.error("the new models are not served: a worker %s while it started; the old ones stay", how(status))
            self._next, self._old = None, generation
            self._end(signal.SIGKILL, generation)
        elif not generation.was_ready and os.waitstatus_to_exitcode(status) == CANNOT_START:
            self._code = CANNOT_START  # it has said why
            self._stop()
        else:
            wait_s = self._deaths.wait_s(time.monotonic())
            generation.waiting[slot] = time.monotonic() + wait_s
            _log.error("worker %d %s; another follows in %.1f s", process.pid, how(status), wait_s)

    def _watch(self) -> None:
        """Kill who is stuck, or late to end."""
        now = time.monotonic()
        slept = now - self._looked > self._stall_s / 2  # this process was held up, so the others may have been too
        self._looked = now
        for _, slot, process in self._everyone():
            fault = (
                None if slept or self._table.state(slot) is not State.READY else self._table.stuck(slot, self._stall_s)
            )
            if fault is None and self._table.state(slot) is State.STARTING and now - process.began > _START_S:
                fault = f"it has not started within {_START_S:.0f} s"
            if fault is None and now > process.kill_at:
                fault = f"it has not ended within {self._drain_s} s"
            if fault is not None:
                _log.error("worker %d is killed: %s", process.pid, fault)
                os.kill(process.pid, signal.SIGKILL)

    def _end(self, number: int, generation: Generation | None = None) -> None:
        for each, _, process in self._everyone():
            if generation in (None, each):
                process.kill_at = min(process.kill_at, time.monotonic() + self._drain_s)
                os.kill(process.pid, number)

    # Generations

    def _move(self) -> None:
        if not self._current.was_ready and self._is_ready(self._current):
            self._current.was_ready = True
        if self._current.was_ready and not self._announced:
            self._announced = True
            self._current.job.started()
        if self._next is not None and self._is_ready(self._next):
            self._take_over(self._next)
        if self._old is not None and not self._old.running:
            self._old = None
        idle = self._next is None and self._old is None and not self._rehearsal and self._announced
        if self._asked_to_renew and idle:
            self._asked_to_renew = False
            try:
                self._rehearsal = forked(self._rehearse, self._mask)
            except OSError as error:
                _log.error("the models are not read again: %s; the old ones stay", error.strerror)

    def _is_ready(self, generation: Generation) -> bool:
        return not generation.waiting and all(self._table.state(slot) is State.READY for slot in generation.running)

    def _take_over(self, generation: Generation) -> None:
        self._old, self._current, self._next = self._current, generation, None
        generation.was_ready = True
        self._table.generation = generation.number
        self._old.waiting.clear()
        self._end(RETIRE, self._old)
        _log.info("generation %d serves; the one before it ends", generation.number)

    def _rehearse(self) -> None:
        """Read the models again in a process that may break; what it finds is said when it is done in earnest."""
        logging.disable()
        self._current.job.renewed(_nothing)

    def _rehearsed(self, status: int) -> None:
        """Read the models again, now that a process that may break has done so and lives."""
        self._rehearsal = 0
        if self._stopping:
            return
        if status:
            _log.error("the models are not read again: who tried %s; the old ones stay", how(status))
            return
        try:
            job = self._current.job.renewed(self._between)
        except ThinnetError as error:
            _log.error("the models are not read again: %s; the old ones stay", error)
        except Interrupted:
            return
        else:
            self._freeze()
            self._next = self._generation(self._current.number + 1, job)

    def _between(self) -> None:
        if signal.sigpending() & set(ENDING):
            raise Interrupted
        self._tend()


def _nothing() -> None: ...
