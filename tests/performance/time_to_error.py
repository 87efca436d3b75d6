"""Time how long it takes to know deviations to 5 %: `python tests/performance/time_to_error.py [--only LeNet]`.

Peers need the passes that the kurtosis of a long run asks for (`deviation_error.py`), and so does thinnet where it only
samples. It may also integrate the last site, or stop by a tolerance of 10 % for variances, which is 5 % for deviations;
the fastest counts. All draw new noise in every call. Beside each number of passes stands the error that 40 seeds show
on the first rows, the reference's own error included. ~ marks times of more passes than there was patience for, in
proportion to those of fewer.
"""

import math
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from contenders import PEERS, captured, ready  # noqa: E402 # the paths come first
from deviation_error import ALLOWED, LIMIT, Reference, enough  # noqa: E402
from judge import Judge  # noqa: E402
from report import begin, geometric, head, line, options, rate  # noqa: E402
from timing import Metered, Work, medians_s, metered, seconds  # noqa: E402
from torch import Tensor  # noqa: E402
from workloads import Workload  # noqa: E402

from service import Predictor  # noqa: E402
from service.errors import InvalidPlan  # noqa: E402

_PATIENCE_S, _PATIENCE_MB = 10.0, 8_000
_COLUMNS = ["workload", "rows", "κ - 1", "passes", "their error", "thinnet, ms", "by", "its error"]


@dataclass(frozen=True)
class Way:
    """One way of asking thinnet.

    Attributes:
        name: What it is called.
        asked: What the call gives besides inputs and seed.
        error: What it shows by trial.
    """

    name: str
    asked: dict[str, Any]
    error: float


@dataclass(frozen=True)
class Peer:
    """What a peer takes.

    Attributes:
        seconds: As many passes as are needed.
        is_measured: Whether these were run, rather than fewer.
        fault: Why its answer is wrong; nothing where it is right.
    """

    seconds: float
    is_measured: bool
    fault: str


@dataclass(frozen=True)
class Row:
    """One workload at one number of rows.

    Attributes:
        reference: The long run.
        ways: Thinnet's ways, the first by sampling, and what each took.
        peers: By name; those that cannot do the workload are absent.
    """

    workload: Workload
    rows: int
    reference: Reference
    ways: list[tuple[Way, float]]
    peers: dict[str, Peer]

    @property
    def best(self) -> tuple[Way, float]:
        """Thinnet's fastest way of those that keep the limit."""
        return min((pair for pair in self.ways if pair[0].error <= ALLOWED), key=lambda pair: pair[1])

    @property
    def best_peer_s(self) -> float:
        """What the fastest right peer takes."""
        return min((peer.seconds for peer in self.peers.values() if not peer.fault), default=math.nan)

    @property
    def ends_linear(self) -> bool:
        """Whether the last site can be integrated, right before a linear output."""
        return any("estimator" in way.asked for way, _ in self.ways)


def measure(workload: Workload, rows: int, rounds: int) -> Row:
    """Find what each contender needs, then time all in turn."""
    x, predictor = workload.inputs(rows), captured(replace(workload, passes=0))
    reference = Reference.of(predictor, x)
    ways = [*_ways(predictor, reference)]
    passes = ways[0].asked["passes"]
    works: dict[str, Work] = {way.name: lambda way=way: predictor.predict(x, seed=None, **way.asked) for way in ways}
    last_s = {name: min(seconds(work), seconds(work)) for name, work in works.items()}  # a first call compiles
    few, share = _of_few(workload, x), passes / workload.passes
    patient = [
        kind
        for kind in PEERS
        if kind.name in few
        and few[kind.name][0].seconds * share < _PATIENCE_S
        and few[kind.name][0].peak_mb * share < _PATIENCE_MB
    ]
    many = ready(replace(workload, passes=passes), patient)
    works |= {name: lambda run=run: run(x) for name, run in many.items()}
    last_s |= {name: few[name][0].seconds * share for name in many}
    medians = medians_s(works, last_s, rounds)
    peers = {
        name: Peer(medians.get(name, once.seconds * share), name in many, fault) for name, (once, fault) in few.items()
    }
    return Row(workload, rows, reference, [(way, medians[way.name]) for way in ways], peers)


def _ways(predictor: Predictor, reference: Reference) -> Iterable[Way]:
    """Return thinnet's ways, with what each needs to keep the limit."""
    passes, error = enough(lambda passes: reference.error(passes=passes), reference.needed)
    yield Way(f"{passes} passes", {"passes": passes}, error)
    asked: dict[str, Any] = {"tolerance": 2 * LIMIT}
    yield Way(f"tolerance {2 * LIMIT:g}", asked, reference.error(**asked))
    integrated: dict[str, Any] = {"estimator": "integrated"}
    try:
        is_exact = any("exact" in note for note in predictor.predict(reference.x, passes=2, **integrated).notes)
    except InvalidPlan:
        return
    passes, error = enough(lambda passes: reference.error(passes=passes, **integrated), 2 if is_exact else None)
    yield Way("integrated, exact" if is_exact else f"{passes} integrated", {"passes": passes} | integrated, error)


def _of_few(workload: Workload, x: Tensor) -> dict[str, tuple[Metered[Any], str]]:
    """Run each peer's passes of the workload once, and judge them."""
    judge = Judge.of(workload, x)
    once = {name: metered(lambda run=run: run(x)) for name, run in ready(workload, PEERS).items()}
    return {name: (each, judge.fault(each.answer)) for name, each in once.items()}


def lines(rows: Sequence[Row]) -> list[str]:
    """Return the table in Markdown, with its geometric means and what is wrong below."""
    names = [each.name for each in PEERS]
    made = head([*_COLUMNS, *(f"{name}, ×" for name in names), "best right peer, ×", "thinnet's other ways, ms"])
    made += [line(_cells(row, names)) for row in rows]
    linear, rest = ([row for row in rows if row.ends_linear is wanted] for wanted in (True, False))
    for told, some in (("whose last site feeds a linear output", linear), ("that end otherwise", rest)):
        mean = geometric(row.best_peer_s / row.best[1] for row in some)
        made += ["", f"Geometric mean of the best right peer over workloads {told}: {mean:.2f}×"] if some else []
    for row in rows:
        faults = {name: peer.fault for name, peer in row.peers.items() if peer.fault}
        made += [f"{name} on {row.workload.name}, {row.rows} rows: {fault}" for name, fault in faults.items()]
    return made


def _cells(row: Row, names: Sequence[str]) -> list[str]:
    (sampled, _), (way, ours_s) = row.ways[0], row.best
    others = (
        f"{each.name} {taken_s * 1e3:.2f}" + ("" if each.error <= ALLOWED else f" ({each.error:.1%})")
        for each, taken_s in row.ways
        if each is not way
    )
    return [
        *(row.workload.name, str(row.rows), f"{row.reference.excess:.2f}", str(sampled.asked["passes"])),
        *(f"{sampled.error:.1%}", f"{ours_s * 1e3:.2f}", way.name, f"{way.error:.1%}"),
        *(_cell(row.peers.get(name), ours_s) for name in names),
        *(f"{row.best_peer_s / ours_s:.2f}", ", ".join(others)),
    ]


def _cell(peer: Peer | None, ours_s: float) -> str:
    if peer is None:
        return "-"
    return ("" if peer.is_measured else "~") + f"{peer.seconds / ours_s:.2f}" + (" wrong" if peer.fault else "")


def main() -> None:
    """Print the table."""
    asked, began, rows = options(__doc__, rounds=3).parse_args(), time.perf_counter(), []
    for workload, count in begin(asked):
        rows.append(measure(workload, count, asked.rounds))
        print(lines(rows[-1:])[2], flush=True)
    print("", *lines(rows), f"At the end: {rate()}; {time.perf_counter() - began:.0f} s in all", sep="\n")


if __name__ == "__main__":
    main()
