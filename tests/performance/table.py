"""Time passes against what a user would pick instead: `python tests/performance/table.py [--only LeNet] [--rounds 5]`.

Everything is timed in one run, contenders in turn, all by the rule of `timing.py`. A cell is how many times as long
as thinnet a contender took; one whose mean or variance is not that of the passes is marked wrong, not fast.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402 # the paths come first
from contenders import PEERS, Contender, FreshThinnet, Moments, Thinnet, ready  # noqa: E402
from judge import Judge  # noqa: E402
from report import begin, geometric, head, line, options, rate  # noqa: E402
from timing import Metered, Work, medians_s, metered  # noqa: E402
from torch import Tensor  # noqa: E402
from workloads import Workload  # noqa: E402

OURS = (Thinnet, FreshThinnet)
_FORWARD = "one deterministic forward"


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
        timings: By contender, thinnet's first; those that cannot do the workload are absent.
    """

    workload: Workload
    rows: int
    forward_s: float
    timings: dict[str, Timing]

    @property
    def ours(self) -> Timing:
        """Thinnet's timing."""
        return self.timings[Thinnet.name]

    @property
    def fresh(self) -> Timing:
        """Thinnet's timing with new noise in every call."""
        return self.timings[FreshThinnet.name]

    @property
    def best_peer_s(self) -> float:
        """What the fastest right peer took."""
        names = [each.name for each in PEERS]
        return min((t.seconds for name, t in self.timings.items() if name in names and not t.fault), default=math.nan)


def measure(workload: Workload, rows: int, rounds: int) -> Row:
    """Time every contender on the same inputs, in turn."""
    x, network = workload.inputs(rows), workload.build()
    contenders = ready(workload, (*OURS, *PEERS))
    first = {name: _first(run, x) for name, run in contenders.items()}
    works: dict[str, Work] = {name: lambda run=run: run(x) for name, run in contenders.items()}
    works[_FORWARD] = torch.inference_mode()(lambda: network(x))
    last_s = {name: each.seconds for name, each in first.items()} | {_FORWARD: 0.0}
    medians, judge = medians_s(works, last_s, rounds), Judge.of(workload, x)
    timings = {name: Timing(medians[name], each.peak_mb, judge.fault(each.answer)) for name, each in first.items()}
    return Row(workload, rows, medians[_FORWARD], timings)


def _first(run: Contender, x: Tensor) -> Metered[Moments]:
    """Meter a contender's first call, or its second where the first makes ready what is made at first use."""
    if run.compiles:
        run(x)
    return metered(lambda: run(x))


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the table in Markdown, with its geometric means and what is wrong below."""
    names = [each.name for each in PEERS]
    columns = ["workload", "rows", "passes", "thinnet, ms", "fresh seed, ms", "forwards"]
    columns += [*(f"{name}, ×" for name in names), "best right peer, ×", "peak, MB", "hand-folded, MB"]
    made = [*head(columns), *(line(_cells(row, names)) for row in rows)]
    few = [row for row in rows if not row.workload.name.startswith(("LeNet", "ResNet"))]
    made += ["", f"Geometric mean of the best right peer: {_mean(rows)}"]
    made += [f"Without LeNet and ResNet: {_mean(few)}"] if few else []
    for row in rows:
        faults = {name: timing.fault for name, timing in row.timings.items() if timing.fault}
        made += [f"{name} on {row.workload.name}, {row.rows} rows: {fault}" for name, fault in faults.items()]
    return made


def _mean(rows: Sequence[Row]) -> str:
    same = geometric(row.best_peer_s / row.ours.seconds for row in rows)
    fresh = geometric(row.best_peer_s / row.fresh.seconds for row in rows)
    return f"{same:.2f}× ({fresh:.2f}× of thinnet with a fresh seed in every call)"


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    folded = row.timings.get("hand-folded")
    return [
        *(row.workload.name, str(row.rows), str(row.workload.passes), f"{row.ours.seconds * 1e3:.2f}"),
        *(f"{row.fresh.seconds * 1e3:.2f}", f"{row.ours.seconds / row.forward_s:.2f}"),
        *(_cell(row, name) for name in names),
        *(f"{row.best_peer_s / row.ours.seconds:.2f}", f"{row.fresh.peak_mb:.0f}"),
        f"{folded.peak_mb:.0f}" if folded else "-",
    ]


def _cell(row: Row, name: str) -> str:
    timing = row.timings.get(name)
    if timing is None:
        return "-"
    return f"{timing.seconds / row.ours.seconds:.2f}" + (" wrong" if timing.fault else "")


def main() -> None:
    """Print the table."""
    asked, began, rows = options(__doc__, rounds=5).parse_args(), time.perf_counter(), []
    for workload, count in begin(asked):
        rows.append(measure(workload, count, asked.rounds))
        print(lines(rows[-1:])[2], flush=True)
    print("", *lines(rows), f"At the end: {rate()}; {time.perf_counter() - began:.0f} s in all", sep="\n")


if __name__ == "__main__":
    main()
