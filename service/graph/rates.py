"""How fast this machine multiplies, gathers and calls, measured once in a process; it does not know networks."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from service.graph.kept import Kept, Scratch, select_weight

_SIDE = 512
_ROUNDS = 8


@dataclass(frozen=True)
class Rates:
    """What the processor does.

    Attributes:
        products: Multiplications and additions of a matrix product, each second.
        gathers: Elements of a matrix that are picked out by rows and columns, each second.
        writes: Elements that are computed one by one, each second.
        call_s: Seconds that calling an operator takes, whatever it does.
    """

    products: float
    gathers: float
    writes: float
    call_s: float


@cache
def measured() -> Rates:
    """Return the machine's rates; some 30 ms the first time, then at once."""
    with torch.inference_mode():
        square, few = torch.ones(_SIDE, _SIDE), torch.ones(1)
        half = Kept(torch.arange(0, _SIDE, 2), torch.ones(_SIDE // 2))
        scratch = Scratch()
        return Rates(
            products=2 * _SIDE**3 / _least_s(lambda: square @ square),
            gathers=0.75 * _SIDE**2 / _least_s(lambda: select_weight(square, half, half, _SIDE, scratch, 0)),
            writes=_SIDE**2 / _least_s(lambda: square * square),
            call_s=_least_s(lambda: [few.index_select(0, half.index[:1]) for _ in range(100)]) / 100,
        )


def _least_s(work: Callable[[], object]) -> float:
    work()
    return min(_seconds(work) for _ in range(_ROUNDS))


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
