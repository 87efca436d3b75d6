"""How a run goes, told while it does: nothing, plain lines, or a bar; it does not know files or engines."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, Self, TextIO

from service.scoring.tally import Tally

if TYPE_CHECKING:
    from rich.progress import TaskID

_LINE_S = 10.0


class Watch(AbstractContextManager["Watch"], Protocol):
    """Who is told how a run goes; entered while it does.

    Attributes:
        counts: Whether it shall be told how many rows there are.
    """

    counts: bool = True

    def begin(self, rows: int | None, done: int) -> None:
        """Take how many rows there are, about, where that is known, and how many were done before."""

    def advance(self, rows: int, tally: Tally) -> None:
        """Take that some more rows are done, and what their answers amount to."""


class Silence(Watch):
    """Nobody is told."""

    counts = False

    def begin(self, rows: int | None, done: int) -> None:
        """Say nothing."""

    def advance(self, rows: int, tally: Tally) -> None:
        """Say nothing."""

    def __exit__(self, *_: object) -> None: ...


SILENT = Silence()


class Checked(Watch):
    """Another watch, and a check at each step, which may end the run.

    Args:
        watch: The other.
        check: Raises what ends the run.
    """

    def __init__(self, watch: Watch, check: Callable[[], None]) -> None:
        self._watch, self._check = watch, check
        self.counts = watch.counts

    def begin(self, rows: int | None, done: int) -> None:
        """Tell the other."""
        self._check()
        self._watch.begin(rows, done)

    def advance(self, rows: int, tally: Tally) -> None:
        """Tell the other."""
        self._check()
        self._watch.advance(rows, tally)

    def __enter__(self) -> Self:
        self._watch.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self._watch.__exit__(*how)


class Lines(Watch):
    """A line every ten seconds, for logs.

    Args:
        threshold: The uncertainty above which rows are counted; None where none are.
        file: Where lines go.
        every_s: How often.
    """

    def __init__(self, threshold: float | None = None, file: TextIO | None = None, every_s: float = _LINE_S) -> None:
        self._threshold, self._file, self._every_s = threshold, file or sys.stderr, every_s
        self._total: int | None = None
        self._before = self._rows = 0
        self._tally = Tally()
        self._began = self._said = time.monotonic()

    def begin(self, rows: int | None, done: int) -> None:
        """Say what was done before, if anything."""
        self._total, self._before = rows, done
        self._began = self._said = time.monotonic()
        if done:
            self._say(f"going on after row {done}, where an earlier run stopped")

    def advance(self, rows: int, tally: Tally) -> None:
        """Say how it goes, when it is time."""
        self._rows += rows
        self._tally += tally
        now = time.monotonic()
        if now - self._said >= self._every_s:
            self._said = now
            self._say(f"{self._before + self._rows}{self._of()} rows, {self.figures(now - self._began)}")

    def figures(self, seconds: float) -> str:
        """Return rows a second, time left, passes and the share of uncertain rows."""
        rate = self._rows / max(seconds, 1e-9)
        parts = [f"{rate:,.0f} rows/s"]
        if self._total:
            left = max(0, self._total - self._before - self._rows) / max(rate, 1e-9)
            parts.append(f"{_clock(left)} left")
        if self._tally.passes:
            parts.append(f"{self._tally.passes:,} passes")
        if self._threshold is not None and self._tally.rows:
            parts.append(f"{self._tally.above / self._tally.rows:.1%} above {self._threshold:g}")
        return ", ".join(parts)

    def _of(self) -> str:
        return f" of {self._total}" if self._total else ""

    def _say(self, text: str) -> None:
        print(text, file=self._file, flush=True)

    def __exit__(self, *how: object) -> None: ...


class Bar(Lines):
    """A bar in a terminal."""

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        columns = TextColumn("{task.completed:,.0f} rows"), BarColumn(), TextColumn("{task.fields[figures]}")
        self._progress: Progress = Progress(*columns, console=Console(file=self._file), transient=True)
        self._task: TaskID = self._progress.add_task("", total=None, figures="")
        self._progress.start()
        return self

    def begin(self, rows: int | None, done: int) -> None:
        """Draw the bar."""
        super().begin(None, 0)
        self._total, self._before = rows, done
        self._progress.update(self._task, total=rows, completed=done)

    def advance(self, rows: int, tally: Tally) -> None:
        """Move the bar."""
        self._rows += rows
        self._tally += tally
        figures = self.figures(time.monotonic() - self._began)
        self._progress.update(self._task, advance=rows, figures=figures)

    def __exit__(self, *how: object) -> None:
        self._progress.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
