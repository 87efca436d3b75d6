"""Bodies in and out: read and unpacked under one limit, answered as JSON; it does not know their meaning."""

import asyncio
import zlib
from types import TracebackType
from typing import Any, Self

import orjson
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from service.errors import BadRequest, Overloaded, TooLarge

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # of zlib: gzip's header, or zlib's own as HTTP's deflate means
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_STEP_BYTES = 1 << 16  # packed, and
_PIECE_BYTES = 1 << 20  # unpacked, at a time
_SOON_S = 1.0


class Held:
    """How many bytes of bodies are held, of all requests at once.

    Args:
        limit_bytes: The most.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes, self.held_bytes = limit_bytes, 0


class Hold:
    """What one request holds of them, until it is left.

    Args:
        held: What all hold.
    """

    def __init__(self, held: Held) -> None:
        self._all, self._own_bytes = held, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._all.held_bytes -= self._own_bytes
        self._own_bytes = 0

    def take(self, count: int) -> None:
        """Hold some more bytes.

        Raises:
            Overloaded: All requests would hold too many.
        """
        if self._all.held_bytes + count > self._all.limit_bytes:
            raise Overloaded(
                f"the bodies of all requests would hold more than {self._all.limit_bytes} bytes; ask again soon",
                _SOON_S,
            )
        self._all.held_bytes += count
        self._own_bytes += count


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body, unpacked where it is gzip or deflate.

    Args:
        request: The request, its body unread.
        limit_bytes: The most that is read, and the most that it may unpack to.

    Raises:
        TooLarge: It is larger.
        BadRequest: It cannot be unpacked.
        Overloaded: All requests at once would hold too much.
    """
    hold: Hold = request.scope["state"]["hold"]
    told = dict(request.scope["headers"])  # of a name that is there twice the last one
    declared = told.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise TooLarge(_too_large(f"the body has {declared.decode()} bytes", limit_bytes))
    body = await _whole(request.receive, limit_bytes, hold)
    encoding = told.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    return body if encoding in ("identity", "") else await _unpack(body, encoding, limit_bytes, hold)


async def _whole(receive: Receive, limit_bytes: int, hold: Hold) -> bytes:
    body, arriving = b"", True
    gathered = bytearray()  # of several pieces: kept one by one, small ones would take many times their size
    while arriving:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body, arriving = message.get("body", b""), message.get("more_body", False)
        if len(gathered) + len(body) > limit_bytes:
            raise TooLarge(_too_large("the body is larger", limit_bytes))
        hold.take(len(body))
        if arriving or gathered:
            gathered += body
    return bytes(gathered) if gathered else body


def json_answer(content: Any, status: int = 200) -> Response:
    """Return a JSON response; arrays are written as they are, numbers that JSON lacks as null."""
    return Response(orjson.dumps(content, option=_JSON_OPTIONS), status, media_type="application/json")


async def _unpack(body: bytes, encoding: str, limit_bytes: int, hold: Hold) -> bytes:
    """Unpack piece by piece, so that others are answered in between and a bomb ends at the limit."""
    if encoding not in _WINDOW_BITS:
        raise BadRequest(f"Content-Encoding {encoding[:40]!r} is not known; send gzip, deflate, or the plain body")
    unpacker, plain, start = zlib.decompressobj(_WINDOW_BITS[encoding]), bytearray(), 0
    try:
        while not unpacker.eof and (unpacker.unconsumed_tail or start < len(body)):
            packed = unpacker.unconsumed_tail
            if not packed:
                packed, start = body[start : start + _STEP_BYTES], start + _STEP_BYTES
            piece = unpacker.decompress(packed, _PIECE_BYTES)
            if len(plain) + len(piece) > limit_bytes:
                raise TooLarge(_too_large(f"the {encoding} body unpacks to more", limit_bytes))
            hold.take(len(piece))
            plain += piece
            await asyncio.sleep(0)
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding}: {error}; pack it again, or leave Content-Encoding out") from None
    if not unpacker.eof:
        raise BadRequest(f"the {encoding} body is cut short; send all of it")
    return bytes(plain)


def _too_large(what: str, limit_bytes: int) -> str:
    return f"{what}, and at most {limit_bytes} bytes are read; send fewer rows at a time"
