"""Random numbers that depend on (seed, site, pass) and, in row scope, the row; on nothing else.

It does not know what the numbers are for: variants draw from a stream, the engine says which passes and rows.

Philox4x64-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") runs in counter mode. Its key is
BLAKE2b-128 of (domain, seed, site); its 256-bit counter is (pass · stride + block, 0, row + 1 or 0 in pass scope, 0),
blocks counted from 1. A block is eight 32-bit words and each number takes one word, so that every pass starts at a
block of its own and passes can be drawn in any order and grouping.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_DOMAIN = "thinnet/1/"
_WORDS_PER_BLOCK = 8
_OPEN_ENDED_STRIDE = 1 << 40  # blocks kept for one pass of a site that can grow
_TWO_32 = float(1 << 32)

Shape = tuple[int, ...]


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
        """Draw Bernoulli(q) truth values [S, R, *shape]."""
        return self._tensor(self._words(shape, part) < round(q * _TWO_32))

    def uniform(self, shape: Shape, part: str = "") -> Tensor:
        """Draw U(0, 1) float64 numbers [S, R, *shape]; never 0 or 1."""
        return self._tensor((self._words(shape, part) + 0.5) / _TWO_32)

    def normal(self, shape: Shape, part: str = "") -> Tensor:
        """Draw N(0, 1) float64 numbers [S, R, *shape] by the inverse of the normal distribution function."""
        normal: Tensor = torch.special.ndtri(self.uniform(shape, part))
        return normal

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def _words(self, shape: Shape, part: str) -> NDArray[np.uint32]:
        growing = tuple(sorted(self.growing))  # also at length 1, which is a longer length's first position
        key = philox_key(part, self.seed, self.site)
        if not growing:
            return self._flat_words(key, prod(shape)).reshape(self.passes, -1, *shape)
        index = _growth_index(shape, growing)
        words = self._open_ended_words(key, int(index.max()) + 1)
        return words[..., index]

    def _flat_words(self, key: tuple[int, int], count: int) -> NDArray[np.uint32]:
        stride = -(-count // _WORDS_PER_BLOCK)
        rows = [_run(key, self.first_pass * stride, row, self.passes * stride) for row in self._counter_rows()]
        return np.stack([row.reshape(self.passes, -1)[:, :count] for row in rows], axis=1)

    def _open_ended_words(self, key: tuple[int, int], count: int) -> NDArray[np.uint32]:
        blocks = -(-count // _WORDS_PER_BLOCK)
        passes = range(self.first_pass, self.first_pass + self.passes)
        return np.stack(
            [
                np.stack([_run(key, index * _OPEN_ENDED_STRIDE, row, blocks) for row in self._counter_rows()])
                for index in passes
            ]
        )

    def _counter_rows(self) -> list[int]:
        return [0] if self.rows is None else [row + 1 for row in self.rows]


def philox_key(part: str, seed: int, site: str) -> tuple[int, int]:
    """Return the two 64-bit words that key a site's numbers."""
    message = "\0".join((_DOMAIN + part, str(seed), site)).encode()
    digest = blake2b(message, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _run(key: tuple[int, int], block: int, row: int, blocks: int) -> NDArray[np.uint32]:
    generator = np.random.Philox(
        counter=np.array([block, 0, row, 0], dtype=np.uint64), key=np.array(key, dtype=np.uint64)
    )
    raw = generator.random_raw(blocks * _WORDS_PER_BLOCK // 2)
    return np.asarray(raw, dtype="<u8").view("<u4")


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
