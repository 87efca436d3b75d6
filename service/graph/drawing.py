"""The noise of a plan's sites, drawn once for requests that ask for the same; it does not know networks.

In scope `pass` noise depends on neither rows nor inputs. Requests that name no seed share one, so most ask for noise
that was drawn before. What was drawn is never written to, and held once it was asked for twice: the noise of seeds that
are asked for once, fresh ones above all, is not worth its room and the time to put it there. Nor is noise that would
take the place of what is still asked for: a question that draws more than there is room for finds a part of it each
time. Much of 0 and one other number is held as truth values, a quarter as large: to make numbers of them takes a fourth
of the time to draw them.
"""

import mmap
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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
_MUCH_BYTES = 3 << 19  # of numbers, from which on they are held as truth values where that can be
_HEAD = 1 << 12  # numbers that tell whether there may be more than two
_MANY = 1 << 20  # numbers, which take longer to draw than threads to start
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


@dataclass(frozen=True)
class Held:
    """Noise of neighbouring passes.

    Attributes:
        first: Index of the first.
        values: What was drawn [S, …], or whether it is not 0, as bytes.
        scale: What is not 0; None where values are what was drawn.
    """

    first: int
    values: Tensor
    scale: float | None = None

    @classmethod
    def of(cls, first: int, drawn: Tensor) -> "Held":
        """Return noise [S, …] as it is held."""
        if drawn.nbytes >= _MUCH_BYTES and drawn.dtype == torch.float32 and drawn.device.type == "cpu":
            head = drawn.reshape(-1)[:_HEAD]  # normal numbers are told at once
            scale = head.max().item()
            if torch.equal(_numbers(head == scale, scale), head):
                values = (drawn == scale).view(torch.uint8)
                if torch.equal(_numbers(values, scale), drawn):
                    return cls(first, values, scale)
        return cls(first, drawn)

    @property
    def until(self) -> int:
        """Index behind the last pass."""
        return self.first + len(self.values)

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return self.values.nbytes + _ENTRY_BYTES

    def apart(self) -> "Held":
        """Return it in pages of its own: among what runs take and free, it would keep holes from being used."""
        values = self.values
        if values.device.type != "cpu" or values.nbytes < _APART_BYTES:
            return self
        pages = torch.frombuffer(mmap.mmap(-1, values.nbytes), dtype=values.dtype).view(values.shape)
        return replace(self, values=pages.copy_(values))

    def passes(self, first: int, count: int) -> Tensor:
        """Return what was drawn of some of its passes."""
        values = self.values[first - self.first : first - self.first + count]
        return values if self.scale is None else _numbers(values, self.scale)


def _numbers(values: Tensor, scale: float) -> Tensor:
    return values.to(torch.float32).mul_(scale)


class Store:
    """Noise by what it was drawn for, within a number of bytes; what was used lately stays.

    Args:
        most_bytes: How many bytes it holds at most.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._held: OrderedDict[Hashable, list[Held]] = OrderedDict()
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
            around = (each for each in self._held[key] if each.first <= first and first + passes <= each.until)
            found = next(around, None)
        return None if found is None else found.passes(first, passes)

    def put(self, key: Hashable, first: int, drawn: Tensor) -> None:
        """Hold the noise of some passes [S, …], in place of what it covers, where there is room for it.

        There is where it takes little of all, and what it would replace was not used lately.
        """
        if drawn.nbytes > self._most_bytes:  # too large even as truth values
            return
        own = Held.of(first, drawn)
        with self._lock:
            held = self._held.get(key, [])
            others = [each for each in held if each.first < own.first or each.until > own.until]
            more = own.size + _sizes(others) - _sizes(held)
            if own.values.nbytes > self._most_bytes // 4 or not self._make_room(key, more):
                return
            self._held[key] = [*others, own.apart()]
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


def _sizes(held: Sequence[Held]) -> int:
    return sum(each.size for each in held)


_store = Store(_STORE_BYTES)
_sizes_drawn: dict[Hashable, int] = {}  # numbers in a pass, for each row, by noise and lengths: variants share some


def draw_noises(
    noises: Sequence[NoiseInput],
    symbols: Symbols,
    shapes: Sequence[tuple[int, ...]],
    draw: Draw,
    device: torch.device,
) -> list[Tensor]:
    """Return the noise of every active site: [S, R, …] each, to be read alone."""
    several = [symbols.lengths(noise.dims, shapes) for noise in noises]

    def drawn(index: int) -> Tensor:
        found = _drawn(noises[index], symbols, several[index], draw, device)
        _sizes_drawn[noises[index], several[index]] = found[0].numel() // max(1, found.shape[1])
        return found

    def drawn_each(places: Sequence[int]) -> list[Tensor]:
        sizes = [_sizes_drawn.get((noises[place], several[place]), 0) for place in places]
        rows = 1 if draw.rows is None else len(draw.rows)
        return _each(drawn, places, device, draw.passes * rows * sum(sizes))

    if len(_sizes_drawn) > _LATELY:
        _sizes_drawn.clear()
    places, first, passes = range(len(noises)), draw.first_pass, draw.passes
    if draw.rows is not None:
        return [_with_spare(each, draw.spare) for each in drawn_each(places)]
    keys = [(noise, lengths, draw.seed, device) for noise, lengths in zip(noises, several, strict=True)]
    found = [_store.find(key, first, passes) for key in keys]
    missing = [index for index in places if found[index] is None]
    for index, each in zip(missing, drawn_each(missing), strict=True):
        if _store.is_asked_again(keys[index], first, passes):
            _store.put(keys[index], first, each)
        found[index] = each
    return [each for each in found if each is not None]


def _each(drawn: Callable[[int], Tensor], places: Sequence[int], device: torch.device, count: int) -> list[Tensor]:
    """Draw the noise of some sites, on as many threads as compute where it is many numbers: one draws on a single one.

    Args:
        drawn: Draws that of a place.
        places: Which.
        device: Where it is wanted.
        count: How many numbers it is, as far as that is known.
    """
    threads = min(torch.get_num_threads(), len(places)) if device.type == "cpu" else 1
    if threads <= 1 or count < _MANY:
        return [drawn(place) for place in places]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(drawn, places))


def _with_spare(noise: Tensor, spare: int) -> Tensor:
    return torch.cat((noise, noise[:, -1:].expand(-1, spare, *noise.shape[2:])), 1) if spare else noise


def _drawn(noise: NoiseInput, symbols: Symbols, lengths: tuple[int, ...], draw: Draw, device: torch.device) -> Tensor:
    growing = frozenset(axis for axis, dim in enumerate(noise.dims) if symbols.is_growing(dim))
    merged = noise.channel_axes if noise.variant.per_channel else 1
    growing = frozenset(max(0, axis + 1 - merged) for axis in growing)
    stream = Stream(draw.seed, noise.site, draw.first_pass, draw.passes, draw.rows, growing, device)
    one = noise.variant.draw(stream, (prod(lengths[:merged]), *lengths[merged:]) if lengths else ())
    return torch.unflatten(one, 2, lengths[:merged]) if merged > 1 else one
