"""API keys: read from a file of hashes, compared in constant time, each with a share of compute; it knows no routes.

A line of the file is `name sha256-hex [seconds of compute a minute]`. A key is 32 random bytes, so one SHA-256 is
enough at rest: nobody finds it by trying. A slow hash protects words that people choose, and each request would pay it.
"""

import fcntl
import hmac
import os
import re
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from math import isfinite
from mmap import mmap
from pathlib import Path
from secrets import token_urlsafe
from threading import Lock
from weakref import finalize

from service.errors import InvalidSettings, TooManyRequests, Unauthorized

Headers = Iterable[tuple[bytes, bytes]]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PREFIX = "thinnet_"  # so that a scanner for secrets knows one when it sees it
_KEY_BYTES = 32
_MOST_BYTES = 1 << 20
_MINUTE_S = 60.0
_ENTRY = struct.Struct("=dd")  # seconds spent, and when that was
_ROUNDING_S = 1e-9


class Ledger:
    """What each key has spent, in memory that forked processes share; a process that dies leaves nothing locked.

    Args:
        count: How many keys there are.
    """

    def __init__(self, count: int) -> None:
        size = _ENTRY.size * max(1, count)
        self._file = _nameless_file()
        finalize(self, os.close, self._file)
        os.truncate(self._file, size)
        self._table = mmap(self._file, size)
        self._lock = Lock()  # a file's lock is the process's: it keeps no threads apart

    @contextmanager
    def entry(self, index: int) -> Iterator[list[float]]:
        """Give a key's entry to read and change, to one holder at a time."""
        place = _ENTRY.size * index
        with self._lock:
            fcntl.lockf(self._file, fcntl.LOCK_EX, _ENTRY.size, place)
            try:
                values = list(_ENTRY.unpack_from(self._table, place))
                yield values
                _ENTRY.pack_into(self._table, place, *values)
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, _ENTRY.size, place)


def _nameless_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("thinnet-keys")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


@dataclass(frozen=True)
class Key:
    """Who asks.

    Attributes:
        name: As the file has it.
        digest: The SHA-256 of the key.
        cost_per_minute: Seconds of compute a minute; None is as much as there is.
        ledger: Where what is spent is written, of all keys.
        index: Its entry there.
    """

    name: str
    digest: bytes = b""
    cost_per_minute: float | None = None
    ledger: Ledger | None = None
    index: int = 0

    def spend(self, cost_s: float) -> None:
        """Take a request's cost from the key's share, a bucket that holds one minute's worth and fills steadily.

        A request that costs more than a minute's worth waits for a full bucket and leaves it below zero.

        Raises:
            TooManyRequests: The share is spent.
        """
        if self.cost_per_minute is None or self.ledger is None:
            return
        rate = self.cost_per_minute / _MINUTE_S
        with self.ledger.entry(self.index) as entry:
            now = time.monotonic()
            spent = max(0.0, entry[0] - (now - entry[1]) * rate)
            short_s = spent + min(cost_s, self.cost_per_minute) - self.cost_per_minute
            if short_s > _ROUNDING_S:
                raise TooManyRequests(
                    f"key {self.name!r} has spent its share of {self.cost_per_minute:g} seconds of compute a minute, "
                    f"and this request costs {cost_s:.3g}; ask again in {short_s / rate:.1f} s, or for less",
                    short_s / rate,
                )
            entry[:] = spent + cost_s, now

    def left_s(self) -> float | None:
        """Return the seconds of compute that are left now; None is as much as there is."""
        if self.cost_per_minute is None or self.ledger is None:
            return None
        with self.ledger.entry(self.index) as (spent, at):
            spent -= (time.monotonic() - at) * self.cost_per_minute / _MINUTE_S
        return self.cost_per_minute - max(0.0, spent)


ANONYMOUS = Key("anonymous")


class Keys:
    """The keys that are known; none means that nobody is asked for one.

    Make it once, before workers are forked: they then share what each key has spent.

    Args:
        entries: (name, SHA-256, seconds of compute a minute or None) of each.
    """

    def __init__(self, entries: Sequence[tuple[str, bytes, float | None]] = ()) -> None:
        ledger = Ledger(len(entries)) if entries else None
        self._keys = [Key(*entry, ledger, index) for index, entry in enumerate(entries)]

    def __bool__(self) -> bool:
        return bool(self._keys)

    def authenticate(self, headers: Headers) -> Key:
        """Return whose key a request carries, as `Authorization: Bearer …` or `X-API-Key`.

        Raises:
            Unauthorized: None, or none that is known.
        """
        if not self._keys:
            return ANONYMOUS
        given = _given(headers)
        if given is None:
            raise Unauthorized("an API key is needed; send it as `Authorization: Bearer …` or `X-API-Key: …`")
        digest, found = sha256(given).digest(), None
        for key in self._keys:  # all of them, so that time tells nothing
            if hmac.compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise Unauthorized("the API key is not known; check that it is whole, or ask for another")
        return found

    @classmethod
    def read(cls, path: Path | None) -> "Keys":
        """Read a file of keys; None is no keys.

        Raises:
            InvalidSettings: With the line that is none.
        """
        if path is None:
            return cls()
        try:
            with path.open("rb") as file:
                text = file.read(_MOST_BYTES + 1)
        except OSError as error:
            raise InvalidSettings(f"keys_file {path} cannot be read: {error.strerror}") from None
        if len(text) > _MOST_BYTES:
            raise InvalidSettings(f"keys_file {path} has more than {_MOST_BYTES} bytes; keep fewer keys in it")
        entries = [
            _entry(line, f"keys_file {path}, line {number}")
            for number, line in enumerate(text.decode("utf-8", "replace").splitlines(), 1)
            if line.strip() and not line.lstrip().startswith("#")
        ]
        for what, values in (("name", [each[0] for each in entries]), ("key", [each[1] for each in entries])):
            if len(set(values)) < len(values):
                raise InvalidSettings(f"keys_file {path} has a {what} twice; keep one line of each")
        if not entries:
            raise InvalidSettings(f"keys_file {path} has no key; make one with `thinnet key NAME`")
        return cls(entries)


def make_key(name: str, cost_per_minute: float | None = None) -> tuple[str, str]:
    """Return a new random key, and its line for the file of keys.

    Raises:
        InvalidSettings: The name or the share is none.
    """
    key = _PREFIX + token_urlsafe(_KEY_BYTES)
    line = f"{name} {sha256(key.encode()).hexdigest()}"
    if cost_per_minute is not None:
        line += f" {cost_per_minute:.15g}"
    _entry(line, "the key")
    return key, line


def _entry(line: str, where: str) -> tuple[str, bytes, float | None]:
    name, digest, *share = [*line.split(), "", ""][: max(2, len(line.split()))]
    if not NAME.fullmatch(name):
        raise InvalidSettings(f"{where}: {name[:80]!r} is no name; use up to 64 of A-Z a-z 0-9 . _ -")
    if not _DIGEST.fullmatch(digest) or len(share) > 1:  # what stands there may be a key: it is not repeated
        raise InvalidSettings(f"{where}: it should be `name sha256-hex [seconds a minute]`, as `thinnet key` prints it")
    return name, bytes.fromhex(digest), _share(share[0], where) if share else None


def _share(text: str, where: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not isfinite(share) or share <= 0:
        raise InvalidSettings(f"{where}: {text[:20]!r} is no number of seconds of compute a minute above 0")
    return share


def _given(headers: Headers) -> bytes | None:
    own = None
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip()
        if name == b"x-api-key" and own is None:
            own = value.strip()
    return own
