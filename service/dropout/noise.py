"""Random numbers that depend on (seed, site, pass) and, in row scope, the row; on nothing else.

It does not know what the numbers are for: variants draw from a stream, the engine says which passes and rows.

Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") runs in counter mode. Its key is
BLAKE2b-128 of (domain, seed, site). Its 256-bit counter is (pass · stride + block, 128 bits; 0; lane) in pass scope and
(row · stride + block, 128 bits; pass + 1; lane) in row scope, blocks counted from 1. A block is 256 bits.

A uniform or normal number takes 32 bits. A truth value takes one where its rate is a half, else eight: the byte is
compared with the rate's first eight bits, and the one in 256 that ties is settled by 32 more from lane 1. Every pass,
and every row in row scope, starts at a block of its own, so that they can be drawn in any order and grouping.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import prod, sqrt
from threading import local

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.transfers import sent

_DOMAIN = "thinnet/1/"
_BLOCK_BITS, _WORD_BITS, _BYTE_BITS = 256, 32, 8
_OPEN_ENDED_STRIDE = 1 << 40  # blocks kept for one pass or row of a site that can grow
_TWO_32 = float(1 << 32)
_HALF = np.uint32(1 << 31)  # what turns a word from 0 to 2³² into one from -2³¹ to 2³¹
_NEAR_ONE = 1 - 2.0**-24
_MASK = (1 << 64) - 1
_VALUES, _TIES = 0, 1  # lanes of the counter

Words = NDArray[np.uint32]
Bits = NDArray[np.bool_]
Shape = tuple[int, ...]
Key = tuple[int, int]


@dataclass(frozen=True)
class Stream:
    """The numbers of one site for consecutive passes.

    Attributes:
        seed: The request's seed, any non-negative integer.
        site: The site's name.
        first_pass: Index of the first pass drawn.
        passes: How many passes, S.
        rows: Row indices of a row-scoped draw, R of them; None draws once for all rows (R = 1).
        growing: Axes of the site's per-row shape whose length varies between requests.
        device: Where the numbers are wanted.
    """

    seed: int
    site: str
    first_pass: int
    passes: int
    rows: Sequence[int] | None = None
    growing: frozenset[int] = frozenset()
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def keep(self, q: float, shape: Shape, part: str = "") -> Tensor:
        """Draw Bernoulli(q) truth values [S, R, *shape]; q is exact in steps of 2⁻⁴⁰."""
        key = philox_key(part, self.seed, self.site)
        return self._arranged(shape, lambda count: self._bits(key, count) if q == 0.5 else self._kept(key, q, count))

    def packed_halves(self, shape: Shape, part: str = "") -> Tensor:
        """Draw the bits of `keep(0.5, shape)` of a shape that does not grow, uint8 [S, R, bytes], low bits first."""
        return torch.from_numpy(self._raw(philox_key(part, self.seed, self.site), prod(shape), 1))

    def coordinates(self, part: str = "") -> Tensor:
        """Return what a kernel draws these numbers from where no axis grows: int64 [S, R, 4], the bits of four words.

        They are the key's two, the index of the pass or row whose blocks come one after the other, and the counter's
        third.
        """
        passes = np.arange(self.first_pass, self.first_pass + self.passes, dtype=np.uint64)[:, None]
        rows = None if self.rows is None else np.asarray(self.rows, dtype=np.uint64)[None, :]
        found = np.empty((self.passes, 1 if rows is None else rows.shape[1], 4), dtype=np.uint64)
        found[..., 0], found[..., 1] = philox_key(part, self.seed, self.site)
        found[..., 2], found[..., 3] = (passes, 0) if rows is None else (rows, passes + np.uint64(1))
        return sent(torch.from_numpy(found.view(np.int64)), self.device)

    def uniform(self, shape: Shape, part: str = "") -> Tensor:
        """Draw U(0, 1) float64 numbers [S, R, *shape]; never 0 or 1."""
        key = philox_key(part, self.seed, self.site)
        return self._arranged(shape, lambda count: (self._words(key, count) + 0.5) / _TWO_32)

    def normal(self, shape: Shape, part: str = "") -> Tensor:
        """Draw N(0, 1) float32 numbers [S, R, *shape] by the inverse of the normal distribution function.

        What it is taken of is rounded to 24 bits, so that none is beyond 5.5; fewer than one in 25 million would be.
        """
        key = philox_key(part, self.seed, self.site)
        words = self._arranged(shape, lambda count: (self._words(key, count) ^ _HALF).view(np.int32))
        levels = words.float().add_(0.5).mul_(2 / _TWO_32).clamp_(-_NEAR_ONE, _NEAR_ONE)
        return levels.erfinv_().mul_(sqrt(2))

    def _arranged(self, shape: Shape, draw: Callable[[int], NDArray[np.generic]]) -> Tensor:
        """Draw as many numbers as the shape needs, [S, R, count], and put each where it belongs."""
        growing = tuple(sorted(self.growing))  # also at length 1, which is a longer length's first position
        if not growing:
            values = draw(prod(shape)).reshape(self.passes, -1, *shape)
        else:
            index = _growth_index(shape, growing)
            values = draw(int(index.max()) + 1)[..., index]
        return sent(torch.from_numpy(np.ascontiguousarray(values)), self.device)

    def _bits(self, key: Key, count: int) -> Bits:
        return np.unpackbits(self._raw(key, count, 1), axis=-1, count=count, bitorder="little").view(np.bool_)

    def _kept(self, key: Key, q: float, count: int) -> Bits:
        first, rest = divmod(round(q * (1 << 40)), 1 << 32)
        values = self._raw(key, count, _BYTE_BITS)  # a few more than asked for, all at once
        kept = values < first if first < 256 else np.ones(values.shape, np.bool_)
        if rest:
            self._settle(key, kept, values == first, rest, count)
        return kept[..., :count]

    def _settle(self, key: Key, kept: Bits, ties: Bits, rest: int, count: int) -> None:
        """Settle ties in place: the k-th of a pass and row by the k-th word of its lane 1."""
        flat = np.flatnonzero(ties)
        owner = flat // ties.shape[-1]
        rank = np.arange(len(flat)) - np.searchsorted(owner, owner)
        most = 4 + count // _WORD_BITS  # at least 8 words; ties are one in 256, and so many more do not occur
        words = self._raw(key, most, _WORD_BITS, _TIES).view(np.uint32)
        words = words.reshape(-1, words.shape[-1])
        kept.reshape(-1)[flat] = words[owner, np.minimum(rank, words.shape[-1] - 1)] < rest

    def _words(self, key: Key, count: int) -> Words:
        return self._raw(key, count, _WORD_BITS).view(np.uint32)[..., :count]

    def _raw(self, key: Key, count: int, width: int, lane: int = _VALUES) -> NDArray[np.uint8]:
        """Return the bytes of at least `count` numbers of `width` bits [S, R, bytes]."""
        blocks = -(-count * width // _BLOCK_BITS)
        runs = [_run(key, first, network, lane, length) for first, network, length in self._runs(blocks)]
        rows = 1 if self.rows is None else len(self.rows)
        return (runs[0] if len(runs) == 1 else np.concatenate(runs)).reshape(self.passes, rows, -1)

    def _runs(self, blocks: int) -> Iterator[tuple[int, int, int]]:
        """Yield the counter's first three words and a length for each run of neighbouring blocks, in order."""
        stride = _OPEN_ENDED_STRIDE if self.growing else blocks
        passes = range(self.first_pass, self.first_pass + self.passes)
        if self.rows is None:
            yield from (
                [(each * stride, 0, blocks) for each in passes]
                if self.growing
                else [(self.first_pass * stride, 0, self.passes * blocks)]
            )
        elif isinstance(self.rows, range) and self.rows.step == 1 and not self.growing:
            yield from ((self.rows.start * stride, each + 1, len(self.rows) * blocks) for each in passes)
        else:
            yield from ((row * stride, each + 1, blocks) for each in passes for row in self.rows)


def philox_key(part: str, seed: int, site: str) -> Key:
    """Return the two 64-bit words that key a site's numbers."""
    message = "\0".join((_DOMAIN + part, str(seed), site)).encode()
    digest = blake2b(message, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


class _Philox(local):
    """A thread's generator, put at one counter after the other: to make another each time takes longer than to draw."""

    def __init__(self) -> None:
        self.generator = np.random.Philox(0)
        self.state = self.generator.state  # its buffer is empty


_philox = _Philox()


def _run(key: Key, first: int, network: int, lane: int, blocks: int) -> NDArray[np.uint8]:
    """Return the bytes of the blocks after counter (first, 128 bits; network; lane)."""
    own = _philox.state["state"]
    own["key"][:] = key
    own["counter"][:] = (first & _MASK, first >> 64, network, lane)
    _philox.generator.state = _philox.state
    return np.asarray(_philox.generator.random_raw(blocks * _BLOCK_BITS // 64), dtype="<u8").view(np.uint8)


@lru_cache(maxsize=64)
def _growth_index(shape: Shape, growing: tuple[int, ...]) -> NDArray[np.intp]:
    """Number the elements so that growing an axis leaves the numbers of those that were there unchanged.

    The growing axes are walked in cubic shells: every element whose largest coordinate is below m comes before
    those that reach m. The other axes follow row by row.
    """
    fixed = tuple(axis for axis in range(len(shape)) if axis not in growing)
    side = max(shape[axis] for axis in growing)
    coordinates = np.indices((side,) * len(growing)).reshape(len(growing), -1)
    order = np.lexsort((*coordinates[::-1], coordinates.max(axis=0)))
    rank = np.empty(len(order), dtype=np.intp)
    rank[order] = np.arange(len(order))
    window = tuple(slice(shape[axis]) for axis in growing)
    outer = rank.reshape((side,) * len(growing))[window]
    inner_shape = tuple(shape[axis] for axis in fixed)
    inner = np.arange(prod(inner_shape)).reshape(inner_shape)
    index = outer.reshape(outer.shape + (1,) * len(fixed)) * inner.size + inner
    return np.ascontiguousarray(np.transpose(index, np.argsort(growing + fixed)))
