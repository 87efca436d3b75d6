"""Memory that is freed and that the allocator keeps for what is made next; it does not know whose it was.

To keep it is faster than to ask the system anew (`graph/rates.py` lets it be kept), but what one large run needed would
stay for good, in a process where such runs are rare. And each thread would keep some of its own, though nearly all that
is large is made by one at a time.
"""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_C = ctypes.CDLL(None)
_trim: Callable[[int], int] | None = getattr(_C, "malloc_trim", None)  # glibc alone has it, and
_allow: Callable[[int, int], int] | None = getattr(_C, "mallopt", None)
_ARENAS = -8  # M_ARENA_MAX
_STATM = Path("/proc/self/statm")
_LITTLE_BYTES = 8 << 20  # held more than at the least; to give back takes milliseconds, and as much to have it anew


class Spare:
    """Free memory that a process holds, given back once it is more than a little.

    As the store is used, what is free in it lies in ever more places, and more of its pages are in use for a moment.
    How much is held is therefore looked at often, rather than given back rarely.
    """

    def __init__(self) -> None:
        self._least_bytes = resident_bytes()

    def is_much(self) -> bool:
        """Tell whether the process holds much more than it did when the least was free."""
        now = resident_bytes()
        self._least_bytes = min(self._least_bytes, now)
        return now > self._least_bytes + _LITTLE_BYTES

    def give_back(self) -> None:
        """Give the system every page that nothing lies on, by malloc_trim(3); where there is none, nothing is done."""
        if _trim is not None:
            _trim(0)
        self._least_bytes = resident_bytes()


def resident_bytes() -> int:
    """Return how much memory this process holds; 0 where the system is not Linux, which alone tells it like this."""
    with suppress(OSError):
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def share() -> None:
    """Let the threads that begin from now on share one store of free memory, by mallopt(3)."""
    if _allow is not None:
        _allow(_ARENAS, 1)
