"""How fast this machine multiplies, gathers and calls, measured once in a process; it does not know networks."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from service.graph.kept import Kept, Scratch, select_weight

_SIDE = 512
_ROUNDS = 8
_SIZES = tuple(part << power for power in range(19, 28) for part in (2, 3))  # in bytes, 1 MB to 384 MB
_TURNS, _TRIES, _STILL_FAST = 5, 3, 0.65
_CACHES, _SHARED = Path("/sys/devices/system/cpu/cpu0/cache"), 4  # by how many others, or for other things
KEPT_BYTES = (32 << 20) - (1 << 13)  # just below the largest block that glibc ever keeps, on 64-bit machines


@dataclass(frozen=True)
class Rates:
    """What the processor does.

    Attributes:
        products: Multiplications and additions of a matrix product, each second.
        gathers: Elements of a matrix that are picked out by rows and columns, each second.
        writes: Elements that are computed one by one, each second.
        call_s: Seconds that calling an operator takes, whatever it does.
        cache_bytes: How much memory operators may fill one after the other before they take clearly longer for it.
    """

    products: float
    gathers: float
    writes: float
    call_s: float
    cache_bytes: int


TYPICAL = Rates(products=1e11, gathers=3e9, writes=1e10, call_s=1.5e-6, cache_bytes=1 << 24)
"""Some machine's, for answers that shall be the same to the last bit however busy this one is."""
_known: list[Rates] = []


def measured() -> Rates:
    """Return the machine's rates; some 100 ms the first time, then at once."""
    if not _known:
        _known.append(measure())
    return _known[0]


def cache_of(device: torch.device) -> int:
    """Return how much memory of a GPU operators may fill before all of it comes from afar: its own cache; else 0."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 0
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


@contextmanager
def assumed(rates: Rates) -> Iterator[None]:
    """Take rates as measured for a while: what they decide, and with it the last bits of answers, is then the same."""
    before = _known[:]
    _known[:] = [rates]
    try:
        yield
    finally:
        _known[:] = before


def measure() -> Rates:
    """Measure the machine anew."""
    _keep_freed_memory()
    with torch.inference_mode():
        square, few = torch.ones(_SIDE, _SIDE), torch.ones(1)
        half = Kept(torch.arange(0, _SIDE, 2), torch.ones(_SIDE // 2))
        scratch = Scratch()
        return Rates(
            products=2 * _SIDE**3 / _least_s(lambda: square @ square),
            gathers=0.75 * _SIDE**2 / _least_s(lambda: select_weight(square, half, half, _SIDE, False, scratch, 0)),
            writes=_SIDE**2 / _least_s(lambda: square * square),
            call_s=_least_s(lambda: [few.index_select(0, half.index[:1]) for _ in range(100)]) / 100,
            cache_bytes=_cache_bytes(),
        )


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed for what is made next: pages fresh from the kernel cost more than to fill them.

    It keeps blocks as large as the largest that it has ever freed (mallopt(3), M_MMAP_THRESHOLD), so one is freed.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


def _cache_bytes() -> int:
    """Return the most bytes that operators on new memory fill about as fast as fewer.

    Past the cache, and past what the allocator keeps at hand, the same operator takes much longer. All sizes are tried
    in turn, again and again: what else runs for a moment then disturbs a part of what is known of each. On a machine
    that is busy meanwhile, a share of the cache that its processor has is what is found at least.
    """
    least_s: dict[int, float] = {}

    def is_slow(size: int) -> bool:
        best = max((known / least_s[known] for known in least_s if known < size), default=0.0)
        return size / least_s[size] < _STILL_FAST * best

    for _ in range(_TURNS):
        for size in _SIZES:
            least_s[size] = min(_filling_s(size), least_s.get(size, math.inf))
            if is_slow(size):
                break
    found = next((fast for fast, size in pairwise(least_s) if is_slow(size)), _SIZES[-1])
    return max(found, _processors_bytes() // _SHARED)


def _processors_bytes() -> int:
    """Return the size of the processor's largest cache as Linux tells it; 0 where nothing is told."""
    sizes = [0]
    for place in _CACHES.glob("index*/size"):
        with suppress(OSError, ValueError):
            sizes.append(int(place.read_text().strip().removesuffix("K")) << 10)
    return max(sizes)


def _filling_s(size: int) -> float:
    x = torch.ones(size // 12)  # a value and what is made of it in two steps, four bytes an element each
    (x * x).add(x)
    return min(_seconds(lambda: (x * x).add(x)) for _ in range(_TRIES))


def _least_s(work: Callable[[], object]) -> float:
    work()
    return min(_seconds(work) for _ in range(_ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
