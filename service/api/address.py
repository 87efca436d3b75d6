"""Where a server listens, and telling people so; it does not know what is served."""

import os
import socket
import sys
from contextlib import suppress

from service.errors import NotReady
from service.settings import Settings


def bound(settings: Settings) -> socket.socket:
    """Return a socket that has the address.

    Raises:
        NotReady: It cannot be had.
    """
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise NotReady(
            f"{settings.host}, port {settings.port}, cannot be listened on: {error.strerror}; give another port or host"
        ) from None
    return listener


def url(host: str, port: int) -> str:
    """Return an address as a URL."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def say(text: str) -> None:
    """Print to standard output past Python's buffer: a full disk or a closed pipe there ends no server."""
    with suppress(OSError, ValueError):
        os.write(sys.stdout.fileno(), f"{text}\n".encode())
