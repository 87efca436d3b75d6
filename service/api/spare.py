"""Memory that is freed and that the allocator keeps for what is made next; it does not know whose it was.

To keep it is faster than to ask the system anew (`graph/rates.py` lets it be kept), but what one large run needed would
stay for good, in a process where such runs are rare. And each thread would keep some of its own, though nearly all that
is large is made by one at a time.
"""

import ctypes
from collections.abc import Callable

_C = ctypes.CDLL(None)
_trim: Callable[[int], int] | None = getattr(_C, "malloc_trim", None)  # glibc alone has it, and
_allow: Callable[[int, int], int] | None = getattr(_C, "mallopt", None)
_ARENAS = -8  # M_ARENA_MAX


def give_back() -> None:
    """Give the system every page that nothing lies on, by malloc_trim(3); where there is none, nothing is done."""
    if _trim is not None:
        _trim(0)


def share() -> None:
    """Let the threads that begin from now on share one store of free memory, by mallopt(3)."""
    if _allow is not None:
        _allow(_ARENAS, 1)
