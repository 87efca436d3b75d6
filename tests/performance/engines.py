"""Score a table here, at a server and with Ray: `python tests/performance/engines.py [--rows 1000000] [--threads 1]`.

The same Parquet file and model by the command `thinnet score`, three times in a row; the server and the Ray are real,
start here and end with it. The three results have to be equal within 1e-5, row for row.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(TESTS), str(TESTS.parent)]

import numpy as np  # noqa: E402 # the paths come first
import pyarrow.parquet as pq  # noqa: E402
from processes import server  # noqa: E402
from report import head, line  # noqa: E402
from scoring import PASSES, make  # noqa: E402

MOST_APART = 1e-5
WAYS = ("local", "url", "ray")


@dataclass(frozen=True)
class Scored:
    """What one way took."""

    way: str
    rows: int
    seconds: float
    command_s: float

    def cells(self, local: "Scored") -> list[str]:
        rate = self.rows / self.seconds
        whole = f"{self.command_s:.1f}"
        return [
            self.way,
            f"{self.rows}",
            f"{self.seconds:.1f}",
            whole,
            f"{rate:.0f}",
            f"{local.seconds / self.seconds:.2f}",
        ]


def score(way: str, folder: Path, options: Sequence[str], environment: Mapping[str, str]) -> Scored:
    """Score by the command; seconds are those of the run alone, and those of the command with all that it imports."""
    told = [folder / "large.parquet", "--output", folder / f"{way}.parquet", "--passes", PASSES, "--quiet", "--json"]
    command = [sys.executable, "-m", "service", "score", *map(str, told), *options]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env={**os.environ, **environment})
    summary = json.loads(done.stdout)
    return Scored(way, summary["rows"], summary["seconds"], time.perf_counter() - began)


def apart(folder: Path, way: str) -> float:
    """Return how far a way's results are from those of this machine, relative to them where they are above 1.

    Raises:
        ValueError: They have other columns or rows.
    """
    mine, theirs = (pq.read_table(folder / f"{each}.parquet") for each in (WAYS[0], way))
    if mine.schema.names != theirs.schema.names or not mine["row"].equals(theirs["row"]):
        raise ValueError(f"{way} has other rows or columns")
    columns = [(mine[name].to_numpy(), theirs[name].to_numpy()) for name in mine.schema.names if name != "row"]
    return float(max(np.max(np.abs(one - other) / np.maximum(1, np.abs(one))) for one, other in columns))


def compare(rows: int, threads: int) -> bool:
    """Print each way's figures; tell whether the results are equal."""
    environment = {"PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        make(folder, rows)
        model = ["--model", str(folder / "model")]
        local = score("local", folder, model, environment)
        with server(str(folder / "model"), **environment) as address:
            url = score("url", folder, ["--url", address], environment)
        ray = score("ray", folder, [*model, "--engine", "ray"], environment)
        print("\n".join(head(["by", "rows", "seconds", "with start, s", "rows/s", "of local"])))
        print("\n".join(line(each.cells(local)) for each in (local, url, ray)))
        differ = {way: apart(folder, way) for way in WAYS[1:]}
    print(f"\nresults differ by at most {max(differ.values()):.1e} (url {differ['url']:.1e}, ray {differ['ray']:.1e})")
    return max(differ.values()) <= MOST_APART


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the table")
    parser.add_argument("--threads", type=int, default=1, help="threads that compute in each process")
    told = parser.parse_args()
    sys.exit(0 if compare(told.rows, told.threads) else 1)
