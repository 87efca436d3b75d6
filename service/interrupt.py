"""Ctrl-C in the moments in which a command is imported and has done nothing; it does not know which command."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The exit code after Ctrl-C."""


@contextmanager
def ends_on_interrupt() -> Iterator[None]:
    """End the process at once on Ctrl-C, with one word and its code: an exception could be lost inside an import.

    Where somebody heeds or ignores the signal already, as of a job in the background, that stays.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGINT, before)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
