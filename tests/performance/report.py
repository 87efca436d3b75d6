"""What the tables of this folder share: options, their first line, Markdown and means; it does not know clocks."""

import argparse
import math
import statistics
import warnings
from collections.abc import Iterable, Sequence

import torch
from contenders import peer_versions
from timing import matrix_rate
from workloads import WORKLOADS, Workload


def options(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return the options that every table takes."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--rows", type=int, help="workloads on this number of rows alone")
    parser.add_argument("--rounds", type=int, default=rounds, help="how often each contender has its turn")
    parser.add_argument("--threads", type=int, help="torch's threads, for every contender")
    return parser


def begin(asked: argparse.Namespace) -> list[tuple[Workload, int]]:
    """Set the threads, tell what is measured where, and return the workloads asked for with their numbers of rows."""
    warnings.simplefilter("ignore")  # torch.export's own deprecations
    if asked.threads:
        torch.set_num_threads(asked.threads)
    print(f"{peer_versions()}; {torch.get_num_threads()} threads; {rate()}", flush=True)
    chosen = [workload for workload in WORKLOADS if asked.only in workload.name]
    return [(workload, rows) for workload in chosen for rows in workload.rows if asked.rows in (None, rows)]


def rate() -> str:
    """Tell the machine's rate as it is now."""
    return f"{matrix_rate() / 1e9:.0f} G operations/s in products"


def head(names: Sequence[str]) -> list[str]:
    """Return the first two lines of a Markdown table."""
    return [line(names), "|" + "---|" * len(names)]


def line(cells: Sequence[str]) -> str:
    """Return one line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def geometric(values: Iterable[float]) -> float:
    """Return the geometric mean; not a number of none."""
    logs = [math.log(each) for each in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan
