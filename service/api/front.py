"""What stands in a proxy before the app's replicas: a bound on bodies, and the proxy's own refusals said as ours.

It does not know what the proxy is, but that it answers plain text where it finds no replica, or none with room.
"""

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.bodies import Held, Hold
from service.api.envelope import REQUEST_ID, Envelope
from service.api.faults import answer_to
from service.errors import DeadlineExceeded, Draining, NotReady, Overloaded, ThinnetError, TooLarge
from service.settings import Settings

_OURS = b"content-security-policy"  # the envelope's: what a replica answers has it
_SOON_S = 1.0


def middlewares() -> list[Middleware]:
    """Return what a proxy is wrapped in, with the environment's settings."""
    return [Middleware(Front, settings=Settings())]


class Front:
    """Turn away what is too large before it is passed on, and speak for a proxy that finds nobody to ask.

    Args:
        app: The proxy.
        settings: The limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._limit_bytes = app, settings.max_body_bytes
        self._held = Held(settings.max_held_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with Hold(self._held) as hold:
            exchange = _Exchange(receive, send, hold, self._limit_bytes)
            declared = dict(scope["headers"]).get(b"content-length", b"")
            if not (declared.isdigit() and exchange.is_too_large(int(declared))):
                await self._app(scope, exchange.receive, exchange.send)
        if exchange.fault is not None and not exchange.started:
            await Envelope(answer_to(exchange.fault))(scope, receive, send)


class _Exchange:
    """One request as a proxy reads it, and its answer: kept back where the proxy is who answers.

    Attributes:
        started: Whether a replica's answer is on its way.
        fault: Why there will be none.
    """

    def __init__(self, receive: Receive, send: Send, hold: Hold, limit_bytes: int) -> None:
        self._receive, self._send, self._hold, self._limit_bytes = receive, send, hold, limit_bytes
        self._count = 0
        self.started = False
        self.fault: ThinnetError | None = None

    def is_too_large(self, count: int) -> bool:
        """Tell, and note, whether a body of so many bytes is refused."""
        if count > self._limit_bytes:
            self.fault = TooLarge(
                f"the body has more than the {self._limit_bytes} bytes that are read; send fewer rows"
            )
        return count > self._limit_bytes

    async def receive(self) -> Message:
        """Receive, as if the caller had left where the body is too large."""
        message = await self._receive()
        if body := message.get("body", b""):
            self._count += len(body)
            try:
                self._hold.take(len(body))
            except Overloaded as error:
                self.fault = error
            if self.is_too_large(self._count) or self.fault is not None:
                return {"type": "http.disconnect"}
        return message

    async def send(self, message: Message) -> None:
        """Send what a replica answers."""
        if message["type"] == "http.response.start":
            self.fault = self.fault or _fault(message)
            message = {**message, "headers": _with_one_id(message["headers"])}
        if self.fault is None:
            self.started = True
            await self._send(message)


def _fault(start: Message) -> ThinnetError | None:
    """Return what a proxy's own answer means; None where it is a replica's, or nothing is wrong."""
    status: int = start["status"]
    if status < 400 or any(name.lower() == _OURS for name, _ in start["headers"]):
        return None
    if status == Overloaded.status:
        return Overloaded("as many requests wait for a replica as may; ask again soon", _SOON_S)
    if status == 408:
        return DeadlineExceeded("no replica answered in time; ask for fewer rows or passes")
    if status in (404, 503):
        return Draining("no replica serves now: they start, or end; ask again soon")
    return NotReady("the replica that computed this is gone; ask again")


def _with_one_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return headers with the first request id, the replica's, alone: the proxy adds one of its own."""
    ids = [index for index, (name, _) in enumerate(headers) if name.lower() == REQUEST_ID]
    return [each for index, each in enumerate(headers) if index not in ids[1:]]
