"""Bodies in and out: read and unpacked under one limit, answered as JSON; it does not know their meaning."""

import zlib
from typing import Any

import orjson
from fastapi import Request, Response

from service.errors import BadRequest, TooLarge

_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # of zlib: gzip's header, or zlib's own as HTTP's deflate means
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """Return a request's body, unpacked where it is gzip or deflate.

    Args:
        request: The request, its body unread.
        limit_bytes: The most that is read, and the most that it may unpack to.

    Raises:
        TooLarge: It is larger.
        BadRequest: It cannot be unpacked.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise TooLarge(_too_large(f"the body has {declared} bytes", limit_bytes))
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit_bytes:
            raise TooLarge(_too_large("the body is larger", limit_bytes))
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    return bytes(body) if encoding in ("identity", "") else _unpack(bytes(body), encoding, limit_bytes)


def json_answer(content: Any, status: int = 200) -> Response:
    """Return a JSON response; arrays are written as they are, numbers that JSON lacks as null."""
    return Response(orjson.dumps(content, option=_JSON_OPTIONS), status, media_type="application/json")


def _unpack(body: bytes, encoding: str, limit_bytes: int) -> bytes:
    if encoding not in _WINDOW_BITS:
        raise BadRequest(f"Content-Encoding {encoding[:40]!r} is not known; send gzip, deflate, or the plain body")
    unpacker = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        plain = unpacker.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"the body is not {encoding}: {error}; pack it again, or leave Content-Encoding out") from None
    if len(plain) > limit_bytes:
        raise TooLarge(_too_large(f"the {encoding} body unpacks to more", limit_bytes))
    if not unpacker.eof:
        raise BadRequest(f"the {encoding} body is cut short; send all of it")
    return plain


def _too_large(what: str, limit_bytes: int) -> str:
    return f"{what}, and at most {limit_bytes} bytes are read; send fewer rows at a time"
