"""One request and its answer as plain values; what is no answer becomes a fault. It does not know who carries them.

thinnet answers `{"error": "<what, where, cure>"}` under an `X-Request-ID`; proxies before it answer pages of their own.
"""

import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import orjson

from service.errors import FAULT, RemoteFault, ThinnetError

RETRIES, RETRY_S = 5, 60.0  # how often, and for how long, a request is sent again where nobody says otherwise
CONCURRENCY = 8  # requests under way at once
_PAGES = (401, 408, 413, 429, 503, 504)  # what a proxy says itself and means as thinnet does
_TITLE = re.compile(r"<title>(.*?)</title>", re.IGNORECASE | re.DOTALL)
_REQUEST_ID = "x-request-id"
_SHOWN = 80


@dataclass(frozen=True)
class Ask:
    """A request.

    Attributes:
        path: Below the server's address, escaped.
        body: What is posted; None asks with GET.
        headers: Besides those of every request.
        timeout_s: How long a silence of the server is waited for.
        answers: The statuses that are answers.
        retried: Whether it may be sent again.
    """

    path: str
    body: bytes | None = None
    headers: Mapping[str, str] | None = None
    timeout_s: float = 65.0
    answers: tuple[int, ...] = (200,)
    retried: bool = True


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes:
        where: The address that was asked, for messages.
        status: The HTTP status.
        headers: By name in lower case.
        body: All of it, unpacked.
    """

    where: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """Return the JSON object that the body is.

        Raises:
            RemoteFault: It is none.
        """
        try:
            found = orjson.loads(self.body)
        except ValueError:
            raise self.foreign(f"answers with {_described(self)}, not with JSON") from None
        if not isinstance(found, dict):
            raise self.foreign("answers with JSON that is no object")
        return found

    def foreign(self, what: str) -> RemoteFault:
        """Return the fault of a server that is not thinnet's, or of an answer that was cut or changed on its way."""
        return RemoteFault(f"{self.where} {what}; check the address, that thinnet serves it, and any proxy between")


_Result = TypeVar("_Result")
Talk = Generator[Ask, Reply, _Result]
"""Requests one after another, each answered before the next: what a shell carries, whether it waits or awaits."""


def path(*parts: object) -> str:
    """Return a path of parts, each escaped."""
    return "".join(f"/{quote(str(part), safe='')}" for part in parts)


def model_path(model: str, version: int | str | None) -> str:
    """Return the path of a model, or of one of its versions."""
    return path("v2", "models", model, *(() if version is None else ("versions", version)))


def checked(ask: Ask, reply: Reply) -> Reply:
    """Return a reply that is an answer.

    Raises:
        ThinnetError: It is none: the class is that of its status, the message the server's own.
    """
    if reply.status in ask.answers:
        return reply
    error = _fault(reply)
    error.request_id = reply.headers.get(_REQUEST_ID)
    error.retry_after_s = _retry_after_s(reply.headers.get("retry-after"))
    raise error


def _fault(reply: Reply) -> ThinnetError:
    said = _said(reply)
    if said is not None:
        number = f", request {reply.headers[_REQUEST_ID]}" if _REQUEST_ID in reply.headers else ""
        return _kind(reply)(f"{said} ({reply.where} answered {reply.status}{number})")
    if 300 <= reply.status < 400:
        return reply.foreign(f"redirects to {reply.headers.get('location', 'nowhere')[:_SHOWN]}, which is not followed")
    what = f"answered {reply.status} {_phrase(reply.status)} with {_described(reply)}, not as thinnet does"
    foreign = reply.foreign(what)
    return _BY_STATUS[reply.status](str(foreign)) if reply.status in _PAGES else foreign


def _kind(reply: Reply) -> type[ThinnetError]:
    """Return the class that the server named, else the most general one of its status."""
    named = _BY_NAME.get(reply.headers.get(FAULT.lower(), ""))
    return named if named and named.status == reply.status else _BY_STATUS.get(reply.status, RemoteFault)


def _said(reply: Reply) -> str | None:
    """Return the server's own message, None where it has none."""
    try:
        found = orjson.loads(reply.body)
    except ValueError:
        return None
    said = found.get("error") if isinstance(found, dict) else None
    return said if isinstance(said, str) else None


def _described(reply: Reply) -> str:
    kind = reply.headers.get("content-type", "").partition(";")[0].strip() or "bytes without a type"
    if not reply.body:
        return "an empty body"
    text = reply.body[:4096].decode("utf-8", "replace")
    title = _TITLE.search(text)
    shown = " ".join((title[1] if title else text).split())[:_SHOWN]
    return f"{kind} ({shown!r})"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "(no status of HTTP)"


def _retry_after_s(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, which may be a number or a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _tree() -> list[type[ThinnetError]]:
    """Return every class of fault, the general ones first."""
    found: list[type[ThinnetError]] = [ThinnetError]
    for kind in found:
        found += kind.__subclasses__()
    return found


_BY_NAME = {kind.__name__: kind for kind in _tree()}
_BY_STATUS = {kind.status: kind for kind in reversed(_tree())} | {500: RemoteFault}
