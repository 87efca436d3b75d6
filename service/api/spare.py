"""Memory that is freed and that the allocator keeps for what is made next; it does not know whose it was.

To keep it is faster than to ask the system anew (`graph/rates.py` lets it be kept), but what one large run needed would
stay for good, in a process where such runs are rare.
"""

import ctypes
from collections.abc import Callable

_trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc alone has it


def give_back() -> None:
    """Give the system every page that nothing lies on, by malloc_trim(3); where there is none, nothing is done."""
    if _trim is not None:
        _trim(0)
