"""Logs as lines of JSON, or of text for people; it does not know what is told.

A line is written by a thread of its own: neither a full disk, a closed stream nor a reader that stands still holds up
or breaks what is being told of. What cannot be written is dropped and counted.
"""

import logging
import os
import sys
from contextlib import suppress
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TextIO

import orjson

from service.settings import Settings

_MOST_WAITING = 10_000
_GATHER_S = 0.05  # lines that come within it are written together: each wake takes time from requests
_FLUSH_S = 2.0


def configure(settings: Settings, stream: TextIO | None = None) -> "Writer":
    """Send this process's logs, the web server's and Python's warnings to a stream; standard error where None."""
    stream = stream or sys.stderr
    is_text = settings.log_format == "text" or (settings.log_format == "auto" and _is_terminal(stream))
    writer = Writer(stream)
    writer.setFormatter(TextLine() if is_text else JsonLine())
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, Writer):
            root.removeHandler(handler)
            handler.close()
    root.addHandler(writer)
    logging.getLogger("thinnet").setLevel(settings.log_level.upper())
    logging.captureWarnings(True)
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False  # not told
    return writer


def lines_lost() -> int:
    """Return how many lines this process could not write."""
    return sum(handler.lost for handler in logging.getLogger().handlers if isinstance(handler, Writer))


class JsonLine(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as JSON."""
        told: dict[str, Any] = {"time": _time(record), "level": record.levelname.lower(), "logger": record.name}
        told |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(told, default=str).decode()


class TextLine(logging.Formatter):
    """One line for people."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        fields = getattr(record, "fields", {})
        rest = "".join(f" {key}={value}" for key, value in fields.items() if key not in ("method", "route", "status"))
        line = f"{_time(record)} {record.levelname.lower()} {record.getMessage()}{rest}"
        return line + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class Writer(logging.Handler):
    """Write records to a stream from a thread; it never raises and never waits.

    Args:
        stream: Where to.

    Attributes:
        lost: How many records could not be written.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self.lost = 0
        self._is_cut = False
        self._process = 0  # the thread starts with the first record: a process that forks is better off without

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a record to the thread, or drop it where too many wait."""
        if self._process != os.getpid():  # a fork takes no thread along
            self._start()
        if self._ending.is_set() or self._records.qsize() >= _MOST_WAITING:
            self.lost += 1
        else:
            self._records.put(record)

    def close(self) -> None:
        """Write what waits, for a moment at most, and end the thread."""
        if self._process == os.getpid():
            self._ending.set()
            self._records.put(None)
            self._thread.join(_FLUSH_S)
        super().close()

    def _start(self) -> None:
        self._records: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        self._process, self._ending = os.getpid(), Event()
        self._thread = Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        records, ending = self._records, self._ending
        while (first := records.get()) is not None:
            ending.wait(_GATHER_S)
            together = [first, *(records.get() for _ in range(records.qsize()))]
            lines = [line for record in together if record is not None and (line := self._line(record)) is not None]
            if lines:
                self._write("".join(lines).encode(errors="backslashreplace"), len(lines))
            if together[-1] is None:
                break

    def _line(self, record: logging.LogRecord) -> str | None:
        try:
            return self.format(record) + "\n"
        except Exception:  # what cannot be told is no reason to tell nothing more
            self.lost += 1
            return None

    def _write(self, data: bytes, lines: int) -> None:
        rest = b"\n" + data if self._is_cut else data  # what was cut short is a line of its own
        try:
            number = self._number()
            while rest and number is not None:
                rest = rest[os.write(number, rest) :]
            if rest:
                self._stream.write(rest.decode())
                self._stream.flush()
            self._is_cut = False
        except (OSError, ValueError):  # a full disk, a closed pipe; a closed file
            self._is_cut = self._is_cut or len(rest) < len(data)
            self.lost += lines

    def _number(self) -> int | None:
        """Return the file's number: writing to it takes no lock that would outlive the thread at exit."""
        with suppress(AttributeError, OSError):
            return self._stream.fileno()
        return None


def _is_terminal(stream: TextIO) -> bool:
    with suppress(AttributeError, OSError, ValueError):
        return stream.isatty()
    return False


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
