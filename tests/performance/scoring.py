"""Score a table by thinnet and by a loop as users write it: `python tests/performance/scoring.py [--rows 100000]`.

Both read and write the same files, each in a process of its own, one after the other; memory is a process's peak.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]

import numpy as np  # noqa: E402 # the paths come first
import pyarrow as pa  # noqa: E402
import pyarrow.csv as pa_csv  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from report import head, line  # noqa: E402

PASSES, BATCH, FEATURES = 100, 4096, 13
NAMES = tuple(f"x{index}" for index in range(FEATURES))
SMALL = 10  # how many times fewer rows the smaller table has
MOST_GROWTH, LEAST_RATIO = 0.1, 10.0


@dataclass(frozen=True)
class Run:
    """What one contender took for one table."""

    name: str
    rows: int
    seconds: float
    cpu_s: float
    peak_mb: float

    def cells(self) -> list[str]:
        return [
            self.name,
            f"{self.rows}",
            f"{self.seconds:.1f}",
            f"{self.cpu_s:.1f}",
            f"{self.rows / self.seconds:.0f}",
            f"{self.peak_mb:.0f}",
        ]


def make(folder: Path, rows: int) -> None:
    """Write the model and the tables."""
    import torch
    from workloads import small_mlp

    from service import Predictor
    from service.signature import Input, Output

    torch.manual_seed(0)
    network = small_mlp().eval()
    torch.save(network.state_dict(), folder / "weights.pth")
    inputs, outputs = [Input("x", shape=(FEATURES,), features=NAMES)], [Output("y", shape=(1,))]
    Predictor.capture(network, torch.randn(2, FEATURES), inputs=inputs, outputs=outputs).save(folder / "model")
    values = np.random.default_rng(0).normal(size=(rows, FEATURES)).round(4)
    table = pa.table(dict(zip(NAMES, values.T, strict=True)))
    for name, part in (("large", table), ("small", table.slice(0, rows // SMALL))):
        pq.write_table(part, folder / f"{name}.parquet")
        pa_csv.write_csv(part, folder / f"{name}.csv")


def by_thinnet(folder: Path, source: Path, output: Path) -> int:
    """Score as `thinnet score` does."""
    from service.threads import prepare_environment

    prepare_environment()
    from service.scoring import Parameters, score_table
    from service.scoring.local import open_folder

    return score_table(source, output, open_folder(folder / "model"), Parameters(passes=PASSES)).rows


def by_hand(folder: Path, source: Path, output: Path) -> int:
    """Score as a user would: dropout on, a batch at a time, all passes stacked."""
    import torch
    from workloads import small_mlp

    network, rows = small_mlp(), 0
    network.load_state_dict(torch.load(folder / "weights.pth"))
    network.train()
    schema = pa.schema([("row", pa.int64()), ("mean", pa.float32()), ("variance", pa.float32())])
    with pq.ParquetWriter(output, schema) as writer, torch.inference_mode():
        for values in batches(source):
            x = torch.from_numpy(values)
            passes = torch.stack([network(x) for _ in range(PASSES)]).squeeze(-1)
            variance, mean = torch.var_mean(passes, 0)
            own = np.arange(rows, rows + len(x)), mean.numpy(), variance.numpy()
            writer.write_table(pa.table(dict(zip(schema.names, own, strict=True)), schema=schema))
            rows += len(x)
    return rows


def batches(source: Path) -> Iterator[NDArray[np.float32]]:
    """Yield a table's rows as a user would read them."""
    if source.suffix == ".csv":
        whole = pa_csv.open_csv(source)
        found = (part for batch in whole for part in slices(batch))
    else:
        found = pq.ParquetFile(source).iter_batches(BATCH)
    for batch in found:
        yield np.stack([batch[name].to_numpy() for name in NAMES], 1).astype(np.float32)


def slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for start in range(0, batch.num_rows, BATCH):
        yield batch.slice(start, BATCH)


WAYS = {"thinnet": by_thinnet, "by hand": by_hand}


def measure(way: str, folder: Path, source: Path, threads: int | None) -> Run:
    """Run one contender in a process of its own."""
    command = [sys.executable, __file__, "--as", way, "--folder", str(folder), "--source", str(source)]
    command += [] if threads is None else ["--threads", str(threads)]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return Run(f"{way}, {source.suffix[1:]}", told["rows"], told["seconds"], told["cpu_s"], told["peak_mb"])


def alone(asked: argparse.Namespace) -> None:
    """Be the process of one contender."""
    import torch

    if asked.threads:
        torch.set_num_threads(asked.threads)
    began, busy = time.perf_counter(), time.process_time()
    rows = WAYS[asked.as_](asked.folder, asked.source, result(asked.folder, asked.as_))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - busy
    print(json.dumps({"rows": rows, "seconds": seconds, "cpu_s": cpu_s, "peak_mb": peak_mb()}))


def peak_mb() -> float:
    """Return the most memory that this process held; what `getrusage` says may be its parent's."""
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 1024


def result(folder: Path, way: str) -> Path:
    """Return where a contender writes."""
    return folder / f"{way.replace(' ', '_')}.parquet"


def disagreement(folder: Path) -> float:
    """Return how far the two means of a row are from one another, in standard errors: about 1 if all is well."""
    mine, theirs = (pq.read_table(result(folder, way)) for way in WAYS)
    rows = min(len(mine), len(theirs))
    (mean, variance), (other, varies) = (
        (each["mean"].to_numpy()[:rows], each["variance"].to_numpy()[:rows]) for each in (mine, theirs)
    )
    return float(np.sqrt(np.mean((mean - other) ** 2 / ((variance + varies) / PASSES))))


def compare(asked: argparse.Namespace) -> bool:
    """Print both contenders' figures; tell whether the bounds hold."""
    with tempfile.TemporaryDirectory() as place:
        folder, holds = Path(place), True
        make(folder, asked.rows)
        print("\n".join(head(["by", "rows", "seconds", "CPU, s", "rows/s", "peak, MB"])), flush=True)
        for ending in ("parquet", "csv"):
            sources = folder / f"small.{ending}", folder / f"large.{ending}"
            small, large, hand = (
                measure("thinnet", folder, sources[0], asked.threads),
                measure("thinnet", folder, sources[1], asked.threads),
                measure("by hand", folder, sources[0 if asked.few else 1], asked.threads),
            )
            print("\n".join(line(each.cells()) for each in (small, large, hand)), flush=True)
            ratio = (hand.seconds / hand.rows) / (large.seconds / large.rows)
            growth = large.peak_mb / small.peak_mb - 1
            print(f"\n{ending}: {ratio:.1f} times as fast as by hand; memory grows by {growth:.1%}; ", end="")
            print(f"means differ by {disagreement(folder):.2f} standard errors\n", flush=True)
            holds = holds and ratio >= LEAST_RATIO and growth <= MOST_GROWTH
        return holds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the larger table")
    parser.add_argument("--few", action="store_true", help="give the loop by hand the smaller table only")
    parser.add_argument("--threads", type=int, help="torch's threads, for both")
    parser.add_argument("--as", dest="as_", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.as_:
        alone(told)
    else:
        sys.exit(0 if compare(told) else 1)
