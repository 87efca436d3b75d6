"""Wait on the event loop for what a thread computes; it does not know what that is.

Loop and thread share one interpreter, so that every wake costs both of them: what came in one turn of the loop is
attended to together, and all that has ended meanwhile wakes the loop once.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from threading import get_ident
from typing import Any, Generic, TypeVar

from starlette.types import Receive

from service.api.alarms import Alarm, Alarms
from service.job import Job

_CHEAP_S = 0.02  # of what costs less, nobody is missed who leaves within
_WATCH_S = 0.1  # since to look out for that takes a while itself
_Result = TypeVar("_Result")


class Awaited(Generic[_Result]):
    """The jobs that one event loop waits for.

    Args:
        attend: Does some of what was submitted, or lets a thread do it, and tells whether it is to be called again.
        is_alone: Tells whether a single request is being answered: then there is nothing to wait for.
    """

    def __init__(self, attend: Callable[[], bool], is_alone: Callable[[], bool] = lambda: False) -> None:
        self._attend, self._is_alone = attend, is_alone
        self._attending = self._looking = False
        self._ended: deque[asyncio.Future[None]] = deque()
        self._thread = 0  # the loop's, once it has attended
        self._alarms = Alarms(_WATCH_S)

    async def result(self, job: Job[_Result], receive: Receive, timeout_s: float) -> _Result | None:
        """Return a job's result; None where the caller has left, for whom nothing more is computed.

        Args:
            job: What was submitted in this turn of the loop.
            receive: Returns once the caller has left.
            timeout_s: How long it may take.

        Raises:
            TimeoutError: It took longer.
        """
        loop = asyncio.get_running_loop()
        if self._is_alone():
            self._attend_all(loop)
            if job.future.done():
                return _result_of(job)
        elif not self._attending:
            self._attend_soon(loop)
        ended: asyncio.Future[None] = loop.create_future()
        job.future.add_done_callback(partial(self._end, loop, ended))
        watch = _Watch(self._alarms, ended, job, receive, timeout_s)
        try:
            await ended
            return _result_of(job)
        finally:
            watch.stop()
            job.cancel()  # unless it has ended

    def _attend_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        self._attending = True
        loop.call_soon(self._attend_all, loop)

    def _attend_all(self, loop: asyncio.AbstractEventLoop) -> None:
        self._attending, self._thread = False, get_ident()
        if self._attend() and not self._attending:
            self._attend_soon(loop)

    def _end(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]", _: "Future[_Result]") -> None:
        """Tell the loop, from whatever thread; from its own at once."""
        if get_ident() == self._thread:
            _set(ended)
            return
        self._ended.append(ended)
        if not self._looking:
            self._looking = True
            loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        self._looking = False
        while self._ended:
            _set(self._ended.popleft())


def _result_of(job: Job[_Result]) -> _Result | None:
    try:
        return job.future.result()
    except CancelledError:
        return None


def _set(ended: "asyncio.Future[None]") -> None:
    if not ended.done():
        ended.set_result(None)


class _Watch(Generic[_Result]):
    """Look out for a caller who leaves and for the end of the time."""

    def __init__(
        self,
        alarms: Alarms,
        ended: "asyncio.Future[None]",
        job: Job[_Result],
        receive: Receive,
        timeout_s: float,
    ) -> None:
        self._ended, self._job, self._receive = ended, job, receive
        self._left: asyncio.Future[Any] | None = None
        self._ends = ended.get_loop().time() + timeout_s
        self._timer: Alarm | asyncio.TimerHandle
        if job.cost_s > _CHEAP_S or timeout_s < _WATCH_S:
            self._begin()
        else:
            self._timer = alarms.set(self._begin)

    def stop(self) -> None:
        self._timer.cancel()
        if self._left is not None:
            self._left.cancel()

    def _begin(self) -> None:
        left = asyncio.ensure_future(self._receive())  # behind its body a request has nothing but its end
        left.add_done_callback(lambda _: self._job.cancel())
        self._left = left
        self._timer = self._ended.get_loop().call_at(self._ends, self._is_late)

    def _is_late(self) -> None:
        if not self._ended.done():
            self._ended.set_exception(TimeoutError())
