"""A caller on a raw socket, byte by byte, and a server whose limits it meets soon."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

BODY = b'{"inputs": [[1, 2, 3]]}'
WAIT_S = 10.0
LATE_S = 0.7
LIMITS = {
    "THINNET_MAX_REQUESTS": "4",
    "THINNET_MAX_CONNECTIONS": "12",
    "THINNET_MAX_TARGET_BYTES": "300",
    "THINNET_MAX_HEADER_BYTES": "2000",
    "THINNET_HEADER_TIMEOUT_S": str(LATE_S),
    "THINNET_BODY_TIMEOUT_S": str(LATE_S),
    "THINNET_WRITE_TIMEOUT_S": str(LATE_S),
    "THINNET_MAX_BODY_BYTES": "100000",
    "THINNET_MAX_HELD_BYTES": "150000",
}
HEAD = b"POST /predict HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


class Caller:
    """One connection, byte by byte."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), WAIT_S)

    def send(self, *data: bytes) -> "Caller":
        self.socket.sendall(b"".join(data))
        return self

    def status(self) -> int:
        return self.answer()[0]

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and JSON of the next answer."""
        data = b""
        while b"\r\n\r\n" not in data:
            data += self._some()
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self._some()
        return int(first.split()[1]), headers, json.loads(body)

    def ends(self) -> bool:
        """Return whether the server ends the connection, without another word."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def read_on(self, count: int) -> None:
        """Read so many bytes more."""
        while count > 0:
            count -= len(self._some())

    def _some(self) -> bytes:
        found = self.socket.recv(65536)
        assert found, "the server ended the connection"
        return found


@contextmanager
def calling(port: int) -> Iterator[Caller]:
    caller = Caller(port)
    with caller.socket:
        yield caller


def works(port: int) -> bool:
    """Return whether the server answers a plain request, as it should after everything."""
    with calling(port) as caller:
        return caller.send(HEAD, b"Content-Length: %d\r\n\r\n" % len(BODY), BODY).status() == 200
