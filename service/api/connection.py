"""One connection under limits: how many there are, how large and how slow a head may be; it does not know requests.

What a request's own limits cannot see, since it has not come in whole: heads that never end, callers that stop reading.
"""

import asyncio
import fcntl
import socket
import struct
import sys
import termios
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.settings import Settings

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol as Connection
else:
    Connection = object  # or HttpToolsProtocol, which has the same methods: whichever uvicorn would take

_STATUS = {
    400: b"400 Bad Request",
    408: b"408 Request Timeout",
    429: b"429 Too Many Requests",
    431: b"431 Request Header Fields Too Large",
}
_AT_ONCE = struct.pack("ii", 1, 0)  # close without sending what is left
_READ_BYTES = 256 * 1024  # what asyncio reads at once
_SMALL_BYTES = 64 * 1024  # that are copied sooner than they are sent apart


def connection_options(settings: Settings) -> dict[str, Any]:
    """Return what `uvicorn.Config` is told of connections."""
    limited = type("Limited", (LimitedConnection, AutoHTTPProtocol), {"settings": settings})
    head_bytes = settings.max_header_bytes + settings.max_target_bytes + _READ_BYTES  # ours is met first
    return {"http": limited, "h11_max_incomplete_event_size": head_bytes, "server_header": False, "ws": "none"}


class LimitedConnection(Connection):
    """uvicorn's connection with an end to every wait, and refusals that are JSON as all others."""

    settings: ClassVar[Settings]
    _timer: asyncio.TimerHandle | None = None  # until the head is whole, or the rest of a refused body is in
    _stall: asyncio.TimerHandle | None = None  # while the caller does not read
    _head_bytes = 0  # since the last whole head
    _parsed_bytes = 0  # of one request's line, headers and trailers

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Take a connection on, where there is room."""
        super().connection_made(transport)
        self._joined = _Joined(transport, self.loop)
        if len(self.connections) > self.settings.max_connections:
            self._refuse(429, "there are as many connections as are taken on at once; ask again soon")
        else:
            self._arm(self._head_is_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._disarm()
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came in, and bound what is no whole head yet."""
        last = self.cycle
        waiting = last is None or (last.response_complete and not last.more_body)
        super().data_received(data)
        if self.cycle is not last:
            self._head_bytes = 0
            self._disarm()
        elif waiting and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > self._limit_bytes:
                self._refuse(431, self._head_is_large())
            elif self._timer is None:
                self._arm(self._head_is_late)

    def on_response_complete(self) -> None:
        """Go on to the next request; the rest of a body that was refused is let in for a while, unread."""
        answered = self.cycle
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch()
        elif self.cycle is answered and answered.response_complete and answered.more_body:
            self._arm(self._close)

    def timeout_keep_alive_handler(self) -> None:
        """Close what is idle."""
        super().timeout_keep_alive_handler()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(400, "this is no whole request of HTTP/1.1; correct its request line, headers or chunks")

    def on_headers_complete(self) -> None:
        """Begin a request, whose answer is written in one piece; of httptools."""
        super().on_headers_complete()  # type: ignore[misc] # of httptools
        if self.cycle is not None:
            self.cycle.transport = self._joined  # type: ignore[assignment] # as far as it is used

    def on_message_begin(self) -> None:
        """Count anew; httptools calls this and the next two, and bounds none of what it is given."""
        self._parsed_bytes = 0
        super().on_message_begin()  # type: ignore[misc] # of httptools

    def on_url(self, url: bytes) -> None:
        """Take a part of the request line."""
        self._count(len(url))
        super().on_url(url)  # type: ignore[misc] # of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer behind the body."""
        self._count(len(name) + len(value) + 4)  # ": " and the line's end
        super().on_header(name, value)  # type: ignore[misc] # of httptools

    def _count(self, count: int) -> None:
        self._parsed_bytes += count
        if self._parsed_bytes > 2 * self._limit_bytes:  # what is less is refused by name, once it is whole
            self._refuse(431, self._head_is_large())
            raise ValueError(self._head_is_large())  # the parser ends

    @property
    def _limit_bytes(self) -> int:
        return self.settings.max_header_bytes + self.settings.max_target_bytes

    def _head_is_large(self) -> str:
        return f"the request line and headers have more than the {self._limit_bytes} bytes that are read"

    def pause_writing(self) -> None:
        """Wait for the caller to read, and not for ever."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Go on writing."""
        self._unwatch()
        super().resume_writing()
        if self.transport.is_closing():
            self._watch()

    def _watch(self) -> None:
        """End the connection if its caller reads nothing of what is left to be sent."""
        self._unwatch()
        if self.transport.get_write_buffer_size():
            limit_s = self.settings.write_timeout_s
            self._stall = self.loop.call_later(limit_s, self._is_stalled, self._unread_bytes())

    def _unread_bytes(self) -> int:
        """Return what is left here and in the kernel, which takes megabytes before a slow reader shows here."""
        queued = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _is_stalled(self, unread_bytes: int) -> None:
        if self._unread_bytes() >= unread_bytes:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            self.transport.abort()
        else:
            self._watch()

    def _unwatch(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _arm(self, act: Any) -> None:
        self._disarm()
        self._timer = self.loop.call_later(self.settings.header_timeout_s, act)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _head_is_late(self) -> None:
        if self._head_bytes:
            limit_s = self.settings.header_timeout_s
            self._refuse(408, f"the request's head did not arrive within {limit_s:g} s; send it faster")
        else:
            self._close()

    def _refuse(self, status: int, message: str) -> None:
        """Answer, where no answer is on its way, and close."""
        self._disarm()
        if self.transport.is_closing():
            return
        cycle, queued = self.cycle, getattr(self, "pipeline", ())
        if cycle is None or cycle.response_complete or (cycle.more_body and not cycle.response_started and not queued):
            body = orjson.dumps({"error": message})
            again = b"Retry-After: 1\r\n" if status == 429 else b""
            head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n%b\r\n"
            self.transport.write(head % (_STATUS[status], len(body), again) + body)
        self._close()

    def _close(self) -> None:
        self.transport.close()
        self._watch()


class _Joined:
    """A transport on which an answer's head waits for its body, for as long as this turn of the loop lasts.

    Args:
        transport: What is written to.
        loop: Whose turns they are.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._waiting = b""
        self.is_closing = transport.is_closing

    def write(self, data: bytes) -> None:
        """Write what waits and this, or let it wait."""
        if not self._waiting and len(data) <= _SMALL_BYTES:
            self._waiting = data
            self._loop.call_soon(self._flush)
        elif len(data) <= _SMALL_BYTES:
            waiting, self._waiting = self._waiting, b""
            self._transport.write(waiting + data)
        else:
            self._flush()
            self._transport.write(data)

    def close(self) -> None:
        """Close once all is written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._waiting and not self._transport.is_closing():
            self._transport.write(self._waiting)
        self._waiting = b""
