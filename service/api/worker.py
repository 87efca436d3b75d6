"""One process that serves: its event loop, its heart-beat and its end; it does not know what is asked of it.

Told to end, it takes the connections that wait, answers every request that it has or that comes on an open connection
with `Connection: close`, and is gone when the last connection is. SIGTERM also closes the scheduler, which refuses new
work; SIGUSR1 does not: others serve by then, and a client who still has a connection here should not notice.
"""

import asyncio
import ctypes
import os
import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import anyio.to_thread
import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.heartbeats import Pulse, State
from service.api.spare import Spare
from service.api.supervisor import RETIRE
from service.scheduler import Scheduler

BACKLOG = 2048
_ATTACH_FILTER = 26  # SO_ATTACH_FILTER of Linux
_BEAT_S, _LOOK_S, _HANDSHAKE_S, _IDLE_S = 0.25, 0.02, 0.2, 1.0
_SPARE_S = 1.0  # how often one looks whether there is memory to be given back
_REFUSE, _CUT = 0.8, 0.9  # of drain_s: then what is not done is refused; then it is cut, and the rest is for the end


def refuse_new(listener: socket.socket) -> None:
    """Let no more handshakes begin, in any process, while those that have begun end: then closing cuts nobody off.

    A classic BPF program looks at the flags of what comes to the listening socket and drops what asks for a connection.
    """
    code = struct.pack("HBBI" * 4, 0x30, 0, 0, 13, 0x45, 0, 1, 0x02, 0x06, 0, 0, 0, 0x06, 0, 0, 0xFFFFFFFF)
    kept = ctypes.create_string_buffer(code)
    with suppress(OSError):  # not every sandbox has it: then a few microseconds are left in which one may be cut off
        listener.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, struct.pack("HL", 4, ctypes.addressof(kept)))


class Worker(uvicorn.Server):
    """A uvicorn server that beats, and ends without losing what it accepted.

    Args:
        config: What uvicorn is told; its app is wrapped.
        scheduler: What computes.
        pulse: Where it says how it is.
        drain_s: How long it may take to end.
    """

    def __init__(self, config: uvicorn.Config, scheduler: Scheduler[Any], pulse: Pulse, drain_s: float) -> None:
        config.app = self._closing(config.app)  # type: ignore[arg-type] # not a name of one
        super().__init__(config)
        self._scheduler, self._pulse, self._drain_s = scheduler, pulse, drain_s
        self._refuses = asyncio.Event()
        self._parent = os.getppid()

    def is_alone(self) -> bool:
        """Tell whether a single request is being answered."""
        return len(self.server_state.tasks) == 1

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Heed what the supervisor sends; what a terminal sends to all is the supervisor's."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        loop.add_signal_handler(signal.SIGTERM, self._end, True)
        loop.add_signal_handler(RETIRE, self._end, False)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio takes one at a time, so that workers share; the kernel holds the others
        self._beside = [asyncio.create_task(self._beat()), asyncio.create_task(self._spare())]
        self._pulse.mark(State.READY)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End within the time there is: stop listening, answer, close."""
        self._pulse.mark(State.DRAINING)
        loop, began = asyncio.get_running_loop(), asyncio.get_running_loop().time()
        loop.call_at(began + self._drain_s * _REFUSE, self._refuses.set)
        if self._refuses.is_set():
            await self._take_waiting(sockets or [])
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        refusing = asyncio.create_task(self._refuse(began + self._drain_s * _REFUSE))
        await self._let_go(began + self._drain_s * _CUT)
        refusing.cancel()
        await self.lifespan.shutdown()
        for task in self._beside:
            task.cancel()

    def _end(self, refuses: bool) -> None:
        self.should_exit = True
        if refuses:
            self._refuses.set()

    async def _beat(self) -> None:
        while True:
            self._pulse.beat(self._scheduler.stalled_s)
            if os.getppid() != self._parent:
                self._end(True)  # nobody is left who would
            await asyncio.sleep(_BEAT_S)

    async def _spare(self) -> None:
        spare = Spare()
        while True:
            await asyncio.sleep(_SPARE_S)
            if spare.is_much():
                await anyio.to_thread.run_sync(spare.give_back)

    async def _take_waiting(self, listeners: list[socket.socket]) -> None:
        """Accept what the kernel has accepted, or is about to: whoever waits there would be cut off."""
        loop = asyncio.get_running_loop()
        waiting, began = select.poll(), loop.time()
        for listener in listeners:
            waiting.register(listener, select.POLLIN)
        while loop.time() < began + _HANDSHAKE_S or (waiting.poll(0) and loop.time() < began + _IDLE_S):
            await asyncio.sleep(0 if waiting.poll(0) else _LOOK_S / 4)

    async def _refuse(self, deadline: float) -> None:
        await self._refuses.wait()
        await self._scheduler.drain(max(0.0, deadline - asyncio.get_running_loop().time()))

    async def _let_go(self, deadline: float) -> None:
        """Wait until every connection is closed, closing those that stay idle."""
        loop, state = asyncio.get_running_loop(), self.server_state
        began = loop.time()
        await asyncio.sleep(_LOOK_S)  # what was accepted last has no protocol yet
        while state.connections or state.tasks:
            if loop.time() > deadline:
                for task in state.tasks:
                    task.cancel()
                return
            patience_s = _IDLE_S if self._refuses.is_set() else self.config.timeout_keep_alive
            if loop.time() > began + patience_s:
                self._close_idle()
            await asyncio.sleep(_LOOK_S)

    def _close_idle(self) -> None:
        for connection in list(self.server_state.connections):
            if not connection.transport.is_closing():
                connection.shutdown()

    def _closing(self, app: ASGIApp) -> ASGIApp:
        async def closing(scope: Scope, receive: Receive, send: Send) -> None:
            async def sending(message: Message) -> None:
                if self.should_exit and message["type"] == "http.response.start":
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
                await send(message)

            await app(scope, receive, sending if scope["type"] == "http" else send)

        return closing
