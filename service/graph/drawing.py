"""The noise of a plan's sites, drawn once for requests that ask for the same; it does not know networks.

In scope `pass` noise depends on neither rows nor inputs. Requests that name no seed share one, so most ask for noise
that was drawn before. What was drawn is never written to, and held once it was asked for twice: the noise of seeds that
are asked for once, fresh ones above all, is not worth its room and the time to put it there. Nor is noise that would
take the place of what is still asked for: a question that draws more than there is room for finds a part of it each
time.
"""

import mmap
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock

import torch
from torch import Tensor

from service.dropout import Stream
from service.graph.rewrite import NoiseInput
from service.graph.shapes import Symbols

_STORE_BYTES = 16 << 20
_ENTRY_BYTES = 1 << 10  # of a key and a tensor, whatever is in it
_APART_BYTES = 1 << 16  # from which on a few pages more do not matter
_LATELY = 1024  # draws, more than most questions take: what was used since stays, what was asked for since is known


@dataclass(frozen=True)
class Draw:
    """Which noise to draw.

    Attributes:
        seed: The request's seed.
        first_pass: Index of the first pass.
        passes: How many, S.
        rows: Row indices for row scope; None for pass scope.
        spare: How many rows run behind those that were asked for; in row scope they take the last one's noise.
    """

    seed: int
    first_pass: int
    passes: int
    rows: Sequence[int] | None
    spare: int = 0


class Store:
    """Noise by what it was drawn for, within a number of bytes; what was used lately stays.

    Args:
        most_bytes: How many bytes it holds at most.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._held: OrderedDict[Hashable, list[tuple[int, Tensor]]] = OrderedDict()  # index of the first pass, noise
        self._used: dict[Hashable, int] = {}  # when that was last put or found, in draws
        self._asked: OrderedDict[Hashable, None] = OrderedDict()
        self._draws = 0
        self._lock = Lock()

    def is_asked_again(self, key: Hashable, first: int, passes: int) -> bool:
        """Tell whether the noise of these very passes was asked for lately; from now on it was."""
        asked = key, first, passes
        with self._lock:
            was = asked in self._asked
            self._asked[asked] = None
            self._asked.move_to_end(asked)
            if len(self._asked) > _LATELY:
                self._asked.popitem(last=False)
            return was

    def find(self, key: Hashable, first: int, passes: int) -> Tensor | None:
        """Return the noise of some passes [S, …], if it is held, alone or among others."""
        with self._lock:
            self._draws += 1
            if key not in self._held:
                return None
            self._use(key)
            for start, drawn in self._held[key]:
                if start <= first and first + passes <= start + len(drawn):
                    return drawn[first - start : first - start + passes]
            return None

    def put(self, key: Hashable, first: int, drawn: Tensor) -> None:
        """Hold the noise of some passes [S, …], in place of what it covers, where there is room for it.

        There is where it takes little of all, and what it would replace was not used lately.
        """
        until = first + len(drawn)
        with self._lock:
            held = self._held.get(key, [])
            others = [each for each in held if each[0] < first or each[0] + len(each[1]) > until]
            more = _size(drawn) + _sizes(others) - _sizes(held)
            if drawn.nbytes > self._most_bytes // 4 or not self._make_room(key, more):
                return
            self._held[key] = [*others, (first, _apart(drawn))]
            self._bytes += more
            self._use(key)

    def _use(self, key: Hashable) -> None:
        self._held.move_to_end(key)
        self._used[key] = self._draws

    def _make_room(self, key: Hashable, more: int) -> bool:
        """Forget what was not used lately, as far as more bytes of a key need it, and tell whether they fit."""
        while self._bytes + more > self._most_bytes:
            oldest = next((each for each in self._held if each != key), None)
            if oldest is None or self._draws - self._used[oldest] < _LATELY:
                return False
            self._bytes -= _sizes(self._held.pop(oldest))
            del self._used[oldest]
        return True


def _apart(drawn: Tensor) -> Tensor:
    """Return noise in pages of its own: among what runs take and free, what stays would keep holes from being used."""
    if drawn.device.type != "cpu" or drawn.nbytes < _APART_BYTES:
        return drawn
    return torch.frombuffer(mmap.mmap(-1, drawn.nbytes), dtype=drawn.dtype).view(drawn.shape).copy_(drawn)


def _size(drawn: Tensor) -> int:
    return drawn.nbytes + _ENTRY_BYTES


def _sizes(held: Sequence[tuple[int, Tensor]]) -> int:
    return sum(_size(each) for _, each in held)


_store = Store(_STORE_BYTES)


def draw_noises(
    noises: Sequence[NoiseInput],
    symbols: Symbols,
    shapes: Sequence[tuple[int, ...]],
    draw: Draw,
    device: torch.device,
) -> list[Tensor]:
    """Return the noise of every active site: [S, R, …] each, to be read alone."""
    return [_noise(noise, symbols, symbols.lengths(noise.dims, shapes), draw, device) for noise in noises]


def _noise(noise: NoiseInput, symbols: Symbols, lengths: tuple[int, ...], draw: Draw, device: torch.device) -> Tensor:
    if draw.rows is not None:
        return _with_spare(_drawn(noise, symbols, lengths, draw, device), draw.spare)
    key = (noise, lengths, draw.seed, device)
    found = _store.find(key, draw.first_pass, draw.passes)
    if found is None:
        found = _drawn(noise, symbols, lengths, draw, device)
        if _store.is_asked_again(key, draw.first_pass, draw.passes):
            _store.put(key, draw.first_pass, found)
    return found


def _with_spare(noise: Tensor, spare: int) -> Tensor:
    return torch.cat((noise, noise[:, -1:].expand(-1, spare, *noise.shape[2:])), 1) if spare else noise


def _drawn(noise: NoiseInput, symbols: Symbols, lengths: tuple[int, ...], draw: Draw, device: torch.device) -> Tensor:
    growing = frozenset(axis for axis, dim in enumerate(noise.dims) if symbols.is_growing(dim))
    merged = noise.channel_axes if noise.variant.per_channel else 1
    growing = frozenset(max(0, axis + 1 - merged) for axis in growing)
    stream = Stream(draw.seed, noise.site, draw.first_pass, draw.passes, draw.rows, growing, device)
    one = noise.variant.draw(stream, (prod(lengths[:merged]), *lengths[merged:]) if lengths else ())
    return torch.unflatten(one, 2, lengths[:merged]) if merged > 1 else one
