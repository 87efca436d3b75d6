"""How requests travel: what the library for HTTP is told, what its faults mean, what is tried again.

It does not know what is asked, nor whether its caller waits or awaits.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2
import stamina

from service import __version__
from service.client.address import Address
from service.client.exchange import RETRIES, RETRY_S, Ask, Reply
from service.errors import (
    BadRequest,
    DeadlineExceeded,
    NotReady,
    RemoteFault,
    ServerUnreachable,
    ThinnetError,
    TooManyRequests,
)

_FIRST_S, _MOST_S, _JITTER_S = 0.2, 5.0, 0.2  # of the waits between attempts, each twice the last
_SPREAD = 1.25  # so that callers who were told one time do not come back at one time
_IDLE_S = 4.0  # a server closes what is idle for 5 seconds
_CONNECT_S = 10.0
_PASSING = (TooManyRequests, NotReady, ServerUnreachable)


@dataclass(frozen=True)
class Carrier:
    """What a client was made with.

    Attributes:
        address: Where the server is.
        api_key: What it is shown, if anything.
        retries: How often a request is sent again, at most; None is as often as time allows.
        retry_s: For how long.
    """

    address: Address
    api_key: str | None = field(default=None, repr=False)
    retries: int | None = RETRIES
    retry_s: float = RETRY_S

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and (not key or not key.isascii() or not key.isprintable() or " " in key):
            raise BadRequest("the API key is none: it should be printable ASCII without spaces or line breaks")

    def waiting(self) -> tuple[httpx2.Client, stamina.RetryingCaller]:
        """Return the library's client that waits, and what calls it again."""
        return httpx2.Client(**self._options()), stamina.RetryingCaller(**self._retrying())

    def awaiting(self) -> tuple[httpx2.AsyncClient, stamina.AsyncRetryingCaller]:
        """Return the library's client that awaits, and what calls it again."""
        return httpx2.AsyncClient(**self._options()), stamina.AsyncRetryingCaller(**self._retrying())

    def _options(self) -> dict[str, Any]:
        headers = {"User-Agent": f"thinnet/{__version__}", "Accept": "application/json, application/octet-stream"}
        if self.api_key is not None:
            headers["X-API-Key"] = self.api_key
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_IDLE_S)
        speaks_tls = self.address.url.startswith("https:")  # else no certificates need to be read; none is redirected
        return {"headers": headers, "limits": limits, "verify": speaks_tls}

    def request(self, ask: Ask) -> dict[str, Any]:
        """Return what the library's `request` is given."""
        given: dict[str, Any] = {"method": "GET" if ask.body is None else "POST", "url": self.address.url + ask.path}
        timeout = httpx2.Timeout(ask.timeout_s, connect=min(_CONNECT_S, ask.timeout_s))
        return {**given, "content": ask.body, "headers": dict(ask.headers or {}), "timeout": timeout}

    def reply(self, ask: Ask, response: httpx2.Response) -> Reply:
        """Return a response, read whole, as plain values."""
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(self.address.shown + ask.path, response.status_code, headers, response.content)

    @contextmanager
    def named(self, ask: Ask) -> Iterator[None]:
        """Raise what a fault of the library means instead of it."""
        try:
            yield
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            raise self._fault(ask, error) from error

    def _fault(self, ask: Ask, error: Exception) -> ThinnetError:
        where = self.address.shown + ask.path
        why = str(error) or type(error).__name__
        if isinstance(error, (httpx2.ReadTimeout, httpx2.WriteTimeout)):
            return DeadlineExceeded(
                f"{where} did not answer within {ask.timeout_s:g} s; ask for less, or give more timeout_s"
            )
        if isinstance(error, httpx2.ConnectTimeout):
            return ServerUnreachable(f"{where} cannot be reached: no connection in time; check host, port and network")
        if isinstance(error, (httpx2.ConnectError, httpx2.ProxyError)):
            return ServerUnreachable(f"{where} cannot be reached: {why}; {_cure(why)}")
        if isinstance(error, (httpx2.NetworkError, httpx2.RemoteProtocolError)):
            return ServerUnreachable(f"{where} ended the connection before its answer was whole: {why}; ask again")
        return RemoteFault(f"{where} cannot be asked, or its answer not read: {why}; check the address")

    def _retrying(self) -> dict[str, Any]:
        waits = {"wait_initial": _FIRST_S, "wait_max": _MOST_S, "wait_jitter": _JITTER_S}
        if self.retry_s <= 0:
            return {"attempts": 1, **waits}
        return {"attempts": None if self.retries is None else self.retries + 1, "timeout": self.retry_s, **waits}

    def rule(self, ask: Ask) -> Callable[[Exception], bool | float]:
        """Return what tells of a fault whether the request is sent again: True, or after how many seconds.

        A server that has asked for more time than is left is not waited for.
        """
        ends = time.monotonic() + self.retry_s

        def wait(error: Exception) -> bool | float:
            if not ask.retried or not isinstance(error, _PASSING):
                return False
            if error.retry_after_s is None:
                return True
            wait_s = error.retry_after_s * random.uniform(1, _SPREAD)
            return wait_s if time.monotonic() + wait_s < ends else False

        return wait


def _cure(why: str) -> str:
    if "WRONG_VERSION_NUMBER" in why or "record layer" in why:
        return "it does not speak TLS there: try http:// instead of https://"
    if "CERTIFICATE_VERIFY_FAILED" in why:
        return "its certificate is not trusted here: set SSL_CERT_FILE to the authority's"
    return "check host and port, and that the server runs"
