"""How many processors a server may use, and what torch must be told before it is imported; it knows no models.

A container's quota counts, not the machine's processors: a process with more threads than its quota has processors is
stopped by the kernel for the rest of each period, in the middle of a request.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_CHOSEN = "OMP_NUM_THREADS"


def usable_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return how many processors this process may keep busy: its affinity's, or its cgroup's quota where that is less.

    A quota of 1.5 processors is 1: a second thread would be stopped half of the time, and the first one waits for it.
    """
    allowed = len(os.sched_getaffinity(0))
    return max(1, int(min([allowed, *_quotas(cgroups, membership)])))


def threads_each(workers: int, asked: int = 0, cpus: int | None = None) -> int:
    """Return how many threads compute in each of some workers.

    Args:
        workers: How many processes share the processors.
        asked: What a person asked for; 0 leaves it to `OMP_NUM_THREADS`, and then to the processors.
        cpus: The processors; those of `usable_cpus` where None.
    """
    chosen = os.environ.get(_CHOSEN, "")
    if asked or (chosen.isdigit() and int(chosen)):
        return asked or int(chosen)
    return max(1, (usable_cpus() if cpus is None else cpus) // workers)


def prepare_environment() -> None:
    """Tell the numerical libraries what they read only once, when they are loaded; what is set already stays.

    A thread of OpenMP that waits for the next operator spins for ten milliseconds, on a processor that the event loop
    or another process needs. One that sleeps at once takes long to wake. A quarter of a millisecond is longer than most
    operators are apart; `tests/performance/serving.py` compares the ways of waiting.
    """
    os.environ |= numeric_environment()


def numeric_environment() -> dict[str, str]:
    """Return what numerical libraries are to be told, as `prepare_environment` does."""
    told = {"OPENBLAS_NUM_THREADS": "1"}  # NumPy's would start threads when it is imported
    if "OMP_WAIT_POLICY" not in os.environ:
        told["GOMP_SPINCOUNT"] = "5000"
    return {name: os.environ.get(name, value) for name, value in told.items()}


def prevent_monitor() -> None:
    """Keep tqdm, where it is installed, from starting a thread for bars that torch makes and nobody sees.

    A process that forks is to have one thread: a fork takes no other along, nor lets go of what it holds.
    """
    with suppress(ImportError):
        from tqdm import tqdm  # which torch imports too

        tqdm.monitor_interval = 0


def _quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    lines: list[str] = []
    with suppress(OSError):
        lines = membership.read_text().splitlines()
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            for home in _upwards(cgroups, path):
                yield from _quota_v2(home)
        elif "cpu" in controllers.split(","):
            for home in _upwards(cgroups / "cpu", path):
                yield from _quota_v1(home)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    """Yield a cgroup's folder and those above it: the least quota holds, and a container sees only some of them."""
    home = root / path.lstrip("/")
    yield home
    while home != root:
        home = home.parent
        yield home


def _quota_v2(home: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota, period = (home / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)


def _quota_v1(home: Path) -> Iterator[float]:
    with suppress(OSError, ValueError):
        quota = int((home / "cpu.cfs_quota_us").read_text())
        if quota > 0:
            yield quota / int((home / "cpu.cfs_period_us").read_text())
