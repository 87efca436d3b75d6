"""Processes that do one job, and how they begin and end; it does not know when."""

import logging
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from service.api.heartbeats import Pulse
from service.errors import ThinnetError

CANNOT_START = 1
ENDING = (signal.SIGTERM, signal.SIGINT)


class Job(Protocol):
    """What the workers of one generation do."""

    def __call__(self, pulse: Pulse) -> None:
        """Work, in a process of its own, until told to end by SIGTERM, or by SIGUSR1 once others have taken over."""

    def renewed(self, pause: Callable[[], None]) -> "Job":
        """Return the next generation's job, calling `pause` now and then.

        Raises:
            ThinnetError: It cannot be made; this job goes on.
        """

    def started(self) -> None:
        """Be told, in the supervisor, that every worker is ready for the first time."""

    def ended(self) -> None:
        """Be told, in the supervisor, that no worker will be forked again."""

    def lost(self, pid: int) -> None:
        """Be told, in the supervisor, that a worker's process is no more."""


class Interrupted(Exception):  # not a fault
    """The server is told to end while it reads the models again."""


class Deaths:
    """How often workers ended unasked, and how long the next one waits for that."""

    def __init__(self, most: int = 5, within_s: float = 60.0, first_s: float = 0.5) -> None:
        self._most, self._within_s, self._first_s = most, within_s, first_s
        self._times: deque[float] = deque()

    def wait_s(self, now: float) -> float:
        """Note an end and return how long to wait: not at all, or twice as long with each end past the most."""
        self._times.append(now)
        while self._times[0] < now - self._within_s:
            self._times.popleft()
        past = len(self._times) - self._most
        return 0.0 if past <= 0 else min(self._within_s, self._first_s * 2.0 ** (past - 1))


@dataclass
class Process:
    """A worker that runs."""

    pid: int
    began: float
    kill_at: float = float("inf")


@dataclass
class Generation:
    """Workers that do the same job: those that run, and when the others are to be forked, by slot."""

    number: int
    job: Job
    waiting: dict[int, float]
    running: dict[int, Process] = field(default_factory=dict)
    was_ready: bool = False


def forked(work: Callable[[], object], mask: Iterable[int]) -> int:
    """Work in a process of its own, with these signals blocked, and return its number.

    Raises:
        OSError: There is no room for one.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = _outcome(work)
    finally:
        os._exit(code)  # what the supervisor shall do at its own end is not a worker's


def how(status: int) -> str:
    """Return how a process ended, from what `os.waitpid` gave."""
    code = os.waitstatus_to_exitcode(status)
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _outcome(work: Callable[[], object]) -> int:
    try:
        work()
    except ThinnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return CANNOT_START
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 2
    finally:
        logging.shutdown()  # what waits to be written would be lost
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
    return 0
