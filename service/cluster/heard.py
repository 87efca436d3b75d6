"""The signals that a deployment heeds; it does not know what is deployed."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_LOOK_S = 0.25


class Heard:
    """The signals that came: SIGTERM and SIGINT end, as KeyboardInterrupt, and SIGHUP renews.

    Attributes:
        ends: Which ended, in order.
    """

    def __init__(self) -> None:
        self.ends: list[int] = []
        self._renews = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed them."""
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._renew)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, look: Callable[[], None], renew: Callable[[], None]) -> None:
        """Look now and then, and renew when told to, until told to end.

        Raises:
            KeyboardInterrupt: Always.
        """
        while not self.ends:
            time.sleep(_LOOK_S)
            look()
            if self._renews:
                self._renews = False
                renew()
        raise KeyboardInterrupt

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.ends.append(number)
        raise KeyboardInterrupt

    def _renew(self, number: int, frame: FrameType | None) -> None:
        self._renews = True
