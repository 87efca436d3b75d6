"""Time passes against what a user would pick instead: `python tests/performance/table.py [--only LeNet] [--rounds 5]`.

Everything is timed in one run, contenders in turn, each by the median of its rounds. A cell is how many times as long
as thinnet a contender took; one whose mean or variance is not that of the passes is marked wrong, not fast.
"""

import argparse
import ctypes
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402 # the paths come first
from contenders import PEERS, Contender, HandLoop, Moments, Thinnet, peer_versions  # noqa: E402
from torch import Tensor  # noqa: E402
from workloads import WORKLOADS, Workload  # noqa: E402

SIGMAS = 6
_PATIENCE_S = 20.0  # a contender that takes longer is timed once


@dataclass(frozen=True)
class Timing:
    """What one contender took.

    Attributes:
        seconds: Its median.
        peak_mb: The most memory it held beyond what was held before.
        fault: Why its answer is wrong; nothing where it is right.
    """

    seconds: float
    peak_mb: float
    fault: str = ""


@dataclass(frozen=True)
class Row:
    """One workload at one number of rows.

    Attributes:
        forward_s: One deterministic forward.
        timings: By contender, thinnet first; None where it cannot do the workload.
    """

    workload: Workload
    rows: int
    forward_s: float
    timings: dict[str, Timing | None]

    @property
    def ours(self) -> Timing:
        """Thinnet's timing."""
        timing = self.timings[Thinnet.name]
        assert timing is not None
        return timing

    @property
    def best_peer(self) -> float:
        """How many times as long as thinnet the fastest right peer took."""
        right = [
            t.seconds for name, t in self.timings.items() if name != Thinnet.name and t is not None and not t.fault
        ]
        return min(right, default=math.nan) / self.ours.seconds


def measure(workload: Workload, rows: int, rounds: int) -> Row:
    """Time every contender on the same inputs, in turn."""
    x, network = workload.inputs(rows), workload.build()
    ready: dict[str, Contender] = {}
    for contender in (Thinnet, *PEERS):
        try:
            ready[contender.name] = contender(workload)
        except NotImplementedError:
            continue
    answers = {name: run(x) for name, run in ready.items()}  # the first call makes ready what is made at first use
    peaks = {name: _peak_mb(lambda run=run: run(x)) for name, run in ready.items()}  # type: ignore[misc] # bound at once
    taken: dict[str, list[float]] = {name: [] for name in ready}
    forwards = []
    for _ in range(rounds):
        with torch.inference_mode():
            forwards.append(min(_seconds(lambda: network(x)) for _ in range(3)))
        for name, run in ready.items():
            if not taken[name] or taken[name][0] < _PATIENCE_S / rounds:
                taken[name].append(_seconds(lambda run=run: run(x)))  # type: ignore[misc] # bound at once
    judge = Judge.of(workload, x)
    timings = {
        name: Timing(statistics.median(taken[name]), peaks[name], judge.fault(answers[name])) if name in ready else None
        for name in (each.name for each in (Thinnet, *PEERS))
    }
    return Row(workload, rows, statistics.median(forwards), timings)


@dataclass(frozen=True)
class Judge:
    """The passes of a careful hand loop, and how far an answer of as many passes may be from them."""

    passes: Tensor

    @staticmethod
    def of(workload: Workload, x: Tensor) -> "Judge":
        """Loop over the first rows."""
        network = HandLoop(workload).network
        with torch.inference_mode():
            return Judge(torch.stack([network(x[:4]) for _ in range(workload.passes)]).double())

    def fault(self, answer: Moments) -> str:
        """Return what is wrong with a mean and a variance, if anything is."""
        mean, variance = (each[: self.passes.shape[1]].double() for each in answer)
        if (variance == 0).all():
            return "variance 0"
        count, centred = len(self.passes), self.passes - self.passes.mean(0)
        expected = centred.square().mean(0)
        off = ((mean - self.passes.mean(0)).abs() / (2 * expected / count).sqrt()).max().item()
        if off > SIGMAS:
            return f"mean off by {off:.0f} standard errors"
        kurtosis = (centred.pow(4).mean(0) / expected.square()).mean().item()
        ratio = (variance.sum() / expected.sum()).item()
        error = math.sqrt(2 * max(kurtosis - 1, 1) / count)
        return f"variance {ratio:.2f} times" if abs(math.log(ratio)) > SIGMAS * error else ""


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the table in Markdown, with its geometric means and what is wrong below."""
    names = [each.name for each in PEERS]
    head = ["workload", "rows", "passes", "thinnet, ms", "forwards", *(f"{name}, ×" for name in names)]
    head += ["best right peer, ×", "peak, MB", "hand-folded, MB"]
    made = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    made += ["| " + " | ".join(_cells(row, names)) + " |" for row in rows]
    few = [row for row in rows if not row.workload.name.startswith(("LeNet", "ResNet"))]
    means = f"{_geometric(rows):.2f}×; without LeNet and ResNet: {_geometric(few):.2f}×"
    made += ["", f"Geometric mean of the best right peer: {means}"]
    for row in rows:
        faults = {name: timing.fault for name, timing in row.timings.items() if timing is not None and timing.fault}
        made += [f"{name} on {row.workload.name}, {row.rows} rows: {fault}" for name, fault in faults.items()]
    return made


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    folded = row.timings["hand-folded"]
    return [
        *(row.workload.name, str(row.rows), str(row.workload.passes), f"{row.ours.seconds * 1e3:.2f}"),
        *(f"{row.ours.seconds / row.forward_s:.2f}", *(_cell(row, name) for name in names)),
        *(f"{row.best_peer:.2f}", f"{row.ours.peak_mb:.0f}", f"{folded.peak_mb:.0f}" if folded else "-"),
    ]


def matrix_rate() -> float:
    """Return the machine's matrix-product rate in float32, in operations per second."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / min(_seconds(lambda: a @ b) for _ in range(20))


def _cell(row: Row, name: str) -> str:
    timing = row.timings[name]
    if timing is None:
        return "-"
    return f"{timing.seconds / row.ours.seconds:.2f}" + (" wrong" if timing.fault else "")


def _geometric(rows: Sequence[Row]) -> float:
    return math.exp(statistics.fmean(math.log(row.best_peer) for row in rows)) if rows else math.nan


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _peak_mb(work: Callable[[], object]) -> float:
    """Return how far a call's resident memory rises above what is held before it (Linux)."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kb("VmRSS")
    work()
    return (_status_kb("VmHWM") - before) / 1024


def _status_kb(field: str) -> int:
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(found.split()[1])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contender is timed")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.export's own deprecations
    print(f"{peer_versions()}; {torch.get_num_threads()} threads; {matrix_rate() / 1e9:.0f} G operations/s in products")
    chosen = [workload for workload in WORKLOADS if asked.only in workload.name]
    rows = []
    for workload in chosen:
        for count in workload.rows:
            rows.append(measure(workload, count, asked.rounds))
            print(*lines(rows[-1:])[2:3], sep="\n", flush=True)
    print("", *lines(rows), sep="\n")


if __name__ == "__main__":
    main()
