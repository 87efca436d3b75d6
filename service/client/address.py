"""A server's address, checked before anything is sent; it does not know what is asked there."""

from dataclasses import dataclass
from urllib.parse import urlsplit, urlunsplit

from service.errors import BadRequest

_SCHEMES = ("http", "https")


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        url: As requests are sent to it, without a slash at its end.
        shown: The same without a name and password, for messages.
    """

    url: str
    shown: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Check an address such as `https://host:port/prefix`.

        Raises:
            BadRequest: It is none.
        """
        try:
            parts = urlsplit(text.strip())
            _ = parts.port  # checked only when it is read
        except ValueError as error:
            raise BadRequest(f"{_cut(text)} is not a server's address ({error}); write http://host:port") from None
        if parts.scheme not in _SCHEMES or not parts.hostname:
            raise BadRequest(f"{_cut(text)} is not a server's address; write http://host:port")
        if parts.query or parts.fragment:
            raise BadRequest(f"{_cut(text)} is more than a server's address; leave out what follows its path")
        url = urlunsplit(parts).rstrip("/")
        return cls(url, url.replace(f"//{parts.netloc}", f"//{parts.netloc.rpartition('@')[2]}", 1))


def _cut(text: str) -> str:
    """Return an address for a message, without what may be a password in it."""
    return repr(text.rpartition("@")[2][:80])
