"""What every exchange has: an id of the request, and headers that keep browsers from harm; it does not know routes."""

import re
from os import urandom

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = b"x-request-id"
_ID_BYTES = 16
_SANE = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_SECURITY: tuple[tuple[bytes, bytes], ...] = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
)


class Envelope:
    """Give each request an id, the caller's own `X-Request-Id` where it is sane, and each answer its headers.

    A route's own header wins over the one that is set here.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number = _number(scope)
        scope.setdefault("state", {})["request_id"] = number
        own = (REQUEST_ID, number.encode())

        async def send_sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message.get("headers", ()))
                names = {name for name, _ in headers}
                headers += [each for each in _SECURITY if each[0] not in names]
                message = {**message, "headers": [*headers, own]}
            await send(message)

        await self._app(scope, receive, send_sealed)


def request_id(scope: Scope) -> str:
    """Return the id of a request; a new one where it has none."""
    found = scope.get("state", {}).get("request_id")
    return found if isinstance(found, str) else urandom(_ID_BYTES).hex()


def _number(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == REQUEST_ID and _SANE.fullmatch(value):
            return str(value, "ascii")
    return urandom(_ID_BYTES).hex()
