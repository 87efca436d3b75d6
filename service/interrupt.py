"""Ctrl-C, which an exception alone tells badly while libraries are imported; it does not know what is interrupted."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """End the process at once on Ctrl-C, with one word and its code: an exception could be lost inside an import.

    Where somebody heeds or ignores the signal already, as of a job in the background, that stays.
    """
    with _heard_by(_end):
        yield


@contextmanager
def kept_interrupts() -> Iterator[Callable[[], None]]:
    """Give what raises KeyboardInterrupt once there was Ctrl-C, for where the exception itself was lost.

    A library that tries to import another and goes on without it swallows the exception, as pyarrow does with pandas.
    """
    came = False

    def keep(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    with _heard_by(keep):
        yield check


@contextmanager
def _heard_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
