"""Calls that are due a fixed time after they are asked for, and of which most are taken back before: one timer for all.

An event loop's own timers are made and sorted one by one, which takes longer than much else about a small request.
"""

import asyncio
from collections import deque
from collections.abc import Callable


class Alarm:
    """One call, until it is made or taken back."""

    __slots__ = ("act", "due")

    def __init__(self, act: Callable[[], object], due: float) -> None:
        self.act: Callable[[], object] | None = act
        self.due = due

    def cancel(self) -> None:
        """Take it back."""
        self.act = None


class Alarms:
    """The calls of an event loop; those of one that has ended are forgotten when there is another.

    Args:
        after_s: How long after it is asked for each is due.
    """

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        self._waiting: deque[Alarm] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None  # the one that has a timer

    def set(self, act: Callable[[], object]) -> Alarm:
        """Ask for a call."""
        loop, waiting = asyncio.get_running_loop(), self._waiting
        if self._loop is not None and self._loop is not loop:
            waiting.clear()
        while waiting and waiting[0].act is None:
            waiting.popleft()
        alarm = Alarm(act, loop.time() + self._after_s)
        waiting.append(alarm)
        if self._loop is not loop:
            self._time(loop)
        return alarm

    def _time(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        loop.call_at(self._waiting[0].due, self._ring, loop)

    def _ring(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, now = None, loop.time()
        while self._waiting and (self._waiting[0].act is None or self._waiting[0].due <= now):
            act = self._waiting.popleft().act
            if act is not None:
                act()
        if self._waiting:
            self._time(loop)
