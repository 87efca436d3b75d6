"""Truth values at any rate, made in registers: where a byte ties with the rate, as `noise.py` settles it.

It does not know what they mask. A tie is settled by its rank among all ties of its pass or row, so what is in front of
a tile must be counted first: a number is held for each segment of a stream, and nothing for its elements.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from service.graph.kernels.numbers import in_order, number_at, parts_of, stream_of, words_from
from service.graph.kernels.tiles import VARYING

_BELOW_A_BYTE = 1 << 32  # of a rate's 2⁴⁰ steps
_SEGMENTS = 64  # of a stream, that one program counts in
_WORDS = 8  # of a block, that settle ties


@dataclass(frozen=True)
class Rate:
    """A probability of keeping, as bits tell it.

    Attributes:
        first: The bytes below it are kept.
        rest: Of those that equal it, the ones whose next 32 bits are below this.
        width: How many bits an element takes.
    """

    first: int
    rest: int
    width: int

    @staticmethod
    def of(q: float) -> "Rate":
        """Return the rate that is q to 2⁻⁴⁰."""
        first, rest = divmod(round(q * (1 << 40)), _BELOW_A_BYTE)
        return Rate(first, rest, 1 if q == 0.5 else 8)

    def arguments(self, noise: Tensor, count: int) -> dict[str, int | bool]:
        """Return what kernels take of it.

        Args:
            noise: What `counted` returned.
            count: The elements that each network masks.
        """
        return {
            "stride": noise.shape[1],
            "blocks": triton.cdiv(count * self.width, 256),
            "settling": triton.cdiv(4 + count // 32, _WORDS),
            "first": self.first,
            "rest": self.rest,
            "WIDTH": self.width,
            "SETTLE": self.rest > 0,
        }


def counted(numbers: Tensor, q: float, count: int, length: int) -> Tensor:
    """Return coordinates and, where ties need it, how many are in front of each segment: int64 [K, 4 + segments].

    Args:
        numbers: Coordinates [K, 4] of K networks.
        q: The probability of keeping.
        count: The elements that each masks.
        length: The elements of a segment; the last may be shorter.
    """
    rate = Rate.of(q)
    if not rate.rest:
        return numbers
    segments = triton.cdiv(count, length)
    ties = torch.empty(len(numbers), segments, dtype=torch.int64, device=numbers.device)
    with torch.cuda.device_of(numbers):
        _count[(triton.cdiv(ties.numel(), _SEGMENTS),)](
            ties, numbers, ties.numel(), segments, length, triton.cdiv(count, 32), rate.first, _SEGMENTS
        )
    return torch.cat([numbers, ties.cumsum(1) - ties], 1)


@triton.jit(do_not_specialize=VARYING)
def _count(found, numbers, count, segments, length, blocks, first, SEGMENTS: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SEGMENTS + tl.arange(0, SEGMENTS)
    is_there, place = place < count, tl.minimum(place, count - 1)
    stream, begin = stream_of(numbers, place // segments, 4, blocks), (place % segments) * length
    ties = tl.zeros([SEGMENTS], tl.int32)
    for start in range(0, length, 32):
        words = in_order(*words_from(stream, (begin + start) * 8))
        is_own = (start + tl.arange(0, 32) < length)[None, :]
        tied = (parts_of(words, 8).reshape([SEGMENTS, 32]) == first) & is_own
        ties += tl.sum(tied.to(tl.int32), 1)
    tl.store(found + place, ties.to(tl.int64), mask=is_there)


@triton.jit
def rank_at(noise, network, stride, segment, is_there):
    """Return how many ties are in front of segments."""
    return tl.load(noise + network.to(tl.int64) * stride + 4 + segment, mask=is_there, other=0)


@triton.jit
def settled(noise, network, stride, settling, rank, rest):
    """Return whether the ties of these ranks are kept."""
    stream = stream_of(noise, network, stride, settling)
    return number_at(stream, tl.minimum(rank, settling * 8 - 1), 1, 32) < rest.to(tl.uint64)


@triton.jit
def settle(noise, network, stride, settling, values, is_own, rank, first, rest):
    """Return the truth values of bytes [*, N], and the rank of the next tie [*].

    Ties are one in 256: the first of each row of a tile is settled, then the second, until no row has any.
    """
    axis: tl.constexpr = len(values.shape) - 1
    size: tl.constexpr = values.shape[axis]
    keep, tied = values < first, (values == first) & is_own
    place = tl.arange(0, size) + tied.to(tl.int32) * 0
    ties = tl.sum(tied.to(tl.int32), axis)
    for index in range(0, tl.max(ties)):
        is_next = place == tl.expand_dims(tl.min(tl.where(tied, place, size), axis), axis)
        is_kept = tl.expand_dims(settled(noise, network, stride, settling, rank + index, rest), axis)
        keep = keep | (tied & is_next & is_kept)
        tied = tied & (is_next == 0)
    return keep, rank + ties
