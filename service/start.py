"""What a server does before torch and the metrics library are imported: signals, environment, a folder for metrics.

It imports neither, and does not know what is served.
"""

import fcntl
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import gettempdir, mkdtemp
from types import FrameType

from service.errors import NotReady
from service.threads import prepare_environment, prevent_monitor

METRICS = "PROMETHEUS_MULTIPROC_DIR"
_MEMORY = Path("/dev/shm")  # a full disk must not end a process that counts in a mapped file
_NAME = "thinnet-counts-"


@contextmanager
def prepared() -> Iterator[None]:
    """Hold what the processes of one server share; a signal to end, before there are workers, ends at once with code 0.

    Raises:
        NotReady: There is no place for the metrics.
    """
    prepare_environment()
    prevent_monitor()
    with _metrics_folder() as made, _ends_on_signals(made):
        yield


@contextmanager
def _metrics_folder() -> Iterator[Path | None]:
    """Make the folder in which processes add up their metrics, unless the environment names one."""
    if os.environ.get(METRICS):
        yield None
        return
    place = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(gettempdir())
    _clear_left(place)
    try:
        made, held = _held_folder(place)
    except OSError as error:
        raise NotReady(
            f"no folder for metrics can be made: {error.strerror}; mount a writable /tmp, or name one in {METRICS}"
        ) from None
    os.environ[METRICS] = str(made)
    try:
        yield made
    finally:
        os.environ.pop(METRICS, None)
        rmtree(made, ignore_errors=True)
        os.close(held)


def _held_folder(place: Path) -> tuple[Path, int]:
    """Make a folder that is locked as long as this process or one that it forks lives; it has its name once it is."""
    fresh = Path(mkdtemp(prefix=f".{_NAME}{os.getpid()}-", dir=place))
    held = os.open(fresh, os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    return fresh.rename(fresh.with_name(fresh.name[1:])), held


def _clear_left(place: Path) -> None:
    """Remove what servers that were killed left: folders that nobody holds, whatever numbers processes have now."""
    for left in place.glob(f"{_NAME}*"):
        try:
            held = os.open(left, os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone by now
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(held).st_uid == os.geteuid():
                rmtree(left, ignore_errors=True)
        except OSError:
            pass  # its server runs
        finally:
            os.close(held)


@contextmanager
def _ends_on_signals(made: Path | None) -> Iterator[None]:
    def end(number: int, frame: FrameType | None) -> None:
        if made is not None:
            rmtree(made, ignore_errors=True)
        os._exit(0)  # nothing was accepted yet, and an exception could be lost inside an import

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the models are being read anyway
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
