"""How long calls take, how much memory they hold, and how fast the machine is meanwhile; it does not know networks.

Everything is timed by one rule. In each round every work has its turn: a short one runs once unmeasured, for what ran
before it has emptied the caches, then it is repeated until enough time is spent. Its time is the median of all rounds.
A long one is called once in all.
"""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch

T = TypeVar("T")
Work = Callable[[], object]
_SHORT_S = 0.2  # a call under this runs once unmeasured before it is timed
_TURN_S = 0.05  # how long a turn repeats its work, once at least
_PATIENCE_S = 2.0  # a call over this is not repeated
_RATE_S = 0.3


@dataclass(frozen=True)
class Metered(Generic[T]):
    """One call.

    Attributes:
        answer: What it returned.
        seconds: What it took.
        peak_mb: How far resident memory rose above what was held before it.
    """

    answer: T
    seconds: float
    peak_mb: float


def medians_s(works: Mapping[str, Work], last_s: Mapping[str, float], rounds: int) -> dict[str, float]:
    """Return the median time of each work, taken in turns.

    Args:
        works: What to time, by name.
        last_s: What each took when it was last called; past the patience that is its time.
        rounds: How many turns each has.
    """
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            last = (taken[name] or [last_s[name]])[-1]
            if last < _PATIENCE_S:
                taken[name] += _turn(work, last)
    return {name: statistics.median(each or [last_s[name]]) for name, each in taken.items()}


def least_s(work: Work, rounds: int = 7) -> float:
    """Return the least time of some calls."""
    return min(seconds(work) for _ in range(rounds))


def seconds(work: Work) -> float:
    """Time one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def metered(work: Callable[[], T]) -> Metered[T]:
    """Call once and tell how long it took and how much memory it held (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before, began = _status_kb("VmRSS"), time.perf_counter()
    answer = work()
    return Metered(answer, time.perf_counter() - began, (_status_kb("VmHWM") - before) / 1024)


def matrix_rate() -> float:
    """Return the machine's best rate of matrix products in float32, in operations per second, once it is warm."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    least, until = float("inf"), time.perf_counter() + _RATE_S
    while time.perf_counter() < until:
        least = min(least, seconds(lambda: a @ b))
    return 2 * 1024**3 / least


def _turn(work: Work, last_s: float) -> list[float]:
    if last_s < _SHORT_S:
        work()
    taken = [seconds(work)]
    while sum(taken) < _TURN_S:
        taken.append(seconds(work))
    return taken


def _status_kb(field: str) -> int:
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(found.split()[1])
