"""What is asked of every request before its body is read: size, key, room; it does not know what routes answer."""

import asyncio
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.alarms import Alarms
from service.api.bodies import Held, Hold
from service.api.faults import internal_fault, named_fault
from service.api.keys import ANONYMOUS, Keys
from service.errors import HeadersTooLarge, Overloaded, TargetTooLong, ThinnetError, TooSlow
from service.settings import Settings

HEALTH = frozenset({"/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"})
METRICS = "/metrics"
_BODILESS = ("GET", "HEAD", "OPTIONS")
_SOON_S = 1.0


class Guard:
    """Refuse what is past a limit or has no key, and answer what goes wrong inside without telling how.

    The key is put on `request.state.key`, and what holds the body's bytes on `request.state.hold`.

    Args:
        app: What is guarded.
        settings: The limits.
        keys: Who may ask.
    """

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        self._app, self._settings, self._keys = app, settings, keys
        self._open = HEALTH | {METRICS} if settings.open_metrics else HEALTH
        self._free = HEALTH | {METRICS}  # they answer at full load too
        self._held, self._limit_s = Held(settings.max_held_bytes), settings.body_timeout_s
        self._alarms = Alarms(self._limit_s)
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, state = False, scope.setdefault("state", {})

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._admit(scope, receive, send_noted)
        except ThinnetError as error:
            await named_fault(scope, error)(scope, receive, send)
        except ClientDisconnect:
            state["reason"] = "client_gone"  # nobody is there to be told
        except Exception as error:
            answer = internal_fault(scope, error)
            if started:  # half an answer is out: only an end of the connection says that it is none
                raise
            await answer(scope, receive, send)

    async def _admit(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._check_head(scope)
        path, state = route_path(scope), scope.setdefault("state", {})
        state["key"] = ANONYMOUS if path in self._open else self._keys.authenticate(scope["headers"])
        counted = path not in self._free
        if counted and self._requests >= self._settings.max_requests:
            raise Overloaded(
                f"{self._requests} requests are being answered, as many as are taken on at once; ask again soon",
                max(_SOON_S, scope["app"].state.serving.scheduler.queued_cost_s),
            )
        self._requests += counted
        body = None if scope["method"] in _BODILESS else _Arriving(receive, self._alarms, self._limit_s)
        try:
            with Hold(self._held) as state["hold"]:
                await self._app(scope, body.receive if body else receive, send)
        finally:
            self._requests -= counted
            if body:
                body.end()

    def _check_head(self, scope: Scope) -> None:
        settings = self._settings
        target_bytes = len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if target_bytes > settings.max_target_bytes:
            raise TargetTooLong(
                f"path and query have {target_bytes} bytes, at most {settings.max_target_bytes} are read; "
                "what is asked belongs in the body"
            )
        header_bytes = sum(len(name) + len(value) + 4 for name, value in scope["headers"])  # ": " and the line's end
        if header_bytes > settings.max_header_bytes:
            raise HeadersTooLarge(
                f"the headers have {header_bytes} bytes, at most {settings.max_header_bytes} are read; send fewer"
            )


class _Arriving:
    """A request's body while it arrives, for a time at most; what is received behind it is that the caller has left.

    Args:
        receive: Gives its pieces.
        alarms: Which tell when its time is over.
        limit_s: How long that is.
    """

    def __init__(self, receive: Receive, alarms: Alarms, limit_s: float) -> None:
        self._receive, self._limit_s = receive, limit_s
        self._alarm = alarms.set(self._is_over)
        self._is_whole = self._is_late = False
        self._waiting: asyncio.Task[Any] | None = None

    async def receive(self) -> Message:
        """Receive the next message.

        Raises:
            TooSlow: It is not there in time.
        """
        if self._is_whole:
            return await self._receive()
        if self._is_late:
            raise self._too_slow()
        self._waiting = task = asyncio.current_task()
        try:
            message = await self._receive()
        except asyncio.CancelledError:
            if not self._is_late or task is None or task.uncancel():
                raise
            raise self._too_slow() from None
        finally:
            self._waiting = None
        if not message.get("more_body", False):
            self.end()
        return message

    def end(self) -> None:
        """Wait for no more of it."""
        self._is_whole = True
        self._alarm.cancel()

    def _is_over(self) -> None:
        self._is_late = True
        if self._waiting is not None:
            self._waiting.cancel()

    def _too_slow(self) -> TooSlow:
        return TooSlow(f"the body did not arrive within {self._limit_s:g} s; send it faster, or less")


def route_path(scope: Scope) -> str:
    """Return the path that routes are matched with: without the root path, which a proxy strips."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root + "/") else path
