"""A server that says what it is told to, over a real socket: pages of proxies, halves of answers, nothing at all."""

import json
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock, Thread
from typing import Any

HANG_UP = b""
_REASONS = {200: "OK", 429: "Too Many Requests", 503: "Service Unavailable"}


def said(status: int, body: Any, *headers: str) -> bytes:
    """Return an answer over HTTP; text is a page, everything else JSON."""
    content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    head = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Reason')}", f"Content-Type: {kind}"]
    head += [f"Content-Length: {len(content)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + content


class Scripted:
    """A server of scripted answers, one for each request; the last one again and again.

    Attributes:
        asked: The request line of each request, and when it came.
        bodies: The body of each.
        most: How many were under way at once.
    """

    def __init__(self, answers: Sequence[bytes], wait_s: float = 0.0) -> None:
        self._answers, self.wait_s = list(answers), wait_s
        self.asked: list[tuple[str, float]] = []
        self.bodies: list[bytes] = []
        self.under_way, self.most, self.left = 0, 0, 0
        self._lock = Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [Thread(target=self._listen)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head, body = _read_request(connection)
            if not head:
                return
            with self._lock:
                answer = self._answers[min(len(self.asked), len(self._answers) - 1)]
                self.asked.append((head.split("\r\n")[0], time.monotonic()))
                self.bodies.append(body)
                self.under_way += 1
                self.most = max(self.most, self.under_way)
            self._wait(connection)
            with self._lock:
                self.under_way -= 1
            connection.sendall(answer)

    def _wait(self, connection: socket.socket) -> None:
        if not self.wait_s:
            return
        connection.settimeout(self.wait_s)
        with suppress(TimeoutError):
            if connection.recv(1) == b"":
                self.left += 1


Script = Callable[..., Scripted]


def _read_request(connection: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return "", b""
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    length = next((int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head.decode(), body
