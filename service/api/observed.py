"""Middleware that times each request, and tells metrics and log when it ends; it does not know routes.

Whoever answers a request may put into its state: `reason` (why it was answered so, one word of a few), `model`, `rows`,
`passes`, `queue_s` and `compute_s`. It finds `request_id` there. Inputs, keys and paths are never told.
"""

import asyncio
import logging
from time import perf_counter
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.envelope import request_id
from service.api.metrics import Metrics
from service.prediction import Prediction

UNKNOWN = "unknown"  # the route of a request that none takes
CLIENT_GONE = 499  # what proxies log where the caller left: nobody is sent it
_log = logging.getLogger("thinnet.access")
PROBES = ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready", "/metrics")
_ADD_S = 0.05  # how soon what is counted is seen from other processes
_TOLD = ("model", "rows", "passes", "queue_s", "compute_s")
_REASONS = {
    400: "bad_request",
    401: "no_key",
    403: "forbidden",
    404: "not_found",
    405: "method",
    408: "too_slow",
    413: "too_large",
    429: "too_many",
    431: "headers_too_large",
    CLIENT_GONE: "client_gone",
    500: "internal",
    503: "not_ready",
    504: "deadline",
}


def tell(request: Request, model: str, prediction: Prediction) -> None:
    """Note what metrics and log tell of a request's prediction."""
    state, (found, *_) = request.state, prediction.outputs.values()
    state.model, state.rows, state.passes = model, found["mean"].shape[0], prediction.passes
    request.app.state.metrics.predicted(model, prediction)


class Observed:
    """Observe every request of an application.

    Args:
        app: The application inside.
        metrics: Where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics
        self._adding = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, and tell of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        failed = False
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            failed = True
            raise
        finally:
            self._tell(exchange, failed)

    def _tell(self, exchange: "_Exchange", failed: bool) -> None:
        seconds = perf_counter() - exchange.started
        route = getattr(exchange.scope.get("route"), "path", UNKNOWN)
        status = exchange.status or (500 if failed else CLIENT_GONE)
        reason = exchange.state.get("reason") or _REASONS.get(status) or ("ok" if status < 400 else f"http_{status}")
        self._metrics.request(route, status, reason, seconds)
        if not self._adding:
            self._adding = True
            asyncio.get_running_loop().call_later(_ADD_S, self._add)
        level = logging.DEBUG if route in PROBES and status < 400 else logging.INFO
        if _log.isEnabledFor(level):
            named = exchange.scope["method"], route, status
            record = logging.LogRecord(_log.name, level, __file__, 0, "%s %s %d", named, None)
            record.fields = exchange.told(route, status, reason, seconds)
            _log.handle(record)  # `log` would first look for the line that called it

    def _add(self) -> None:
        self._adding = False
        self._metrics.add()


class _Exchange:
    """One request and its answer, as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.started = perf_counter()
        self.scope, self._receive, self._send = scope, receive, send
        self.state: dict[str, Any] = scope.setdefault("state", {})
        self._id = request_id(scope)
        self.status = self._bytes_in = self._bytes_out = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            timing = (b"server-timing", self._timing().encode())
            message = {**message, "headers": [*message.get("headers", ()), timing]}
        elif message["type"] == "http.response.body":
            self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    def told(self, route: str, status: int, reason: str, seconds: float) -> dict[str, Any]:
        """Return what the log tells."""
        told = {"method": self.scope["method"], "route": route, "status": status, "reason": reason}
        told |= {"ms": round(1000 * seconds, 3), "bytes_in": self._bytes_in, "bytes_out": self._bytes_out}
        told |= {key: self.state[key] for key in _TOLD if key in self.state}
        return {**told, "request_id": self._id}

    def _timing(self) -> str:
        """Return a Server-Timing header's value, in milliseconds."""
        parts = [
            f"{name};dur={1000 * self.state[f'{name}_s']:.3f}"
            for name in ("queue", "compute")
            if f"{name}_s" in self.state
        ]
        return ", ".join([*parts, f"total;dur={1000 * (perf_counter() - self.started):.3f}"])
