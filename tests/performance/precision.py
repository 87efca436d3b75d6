"""Measure what coarse products do to time, mean and variance: `python tests/performance/precision.py [--only LeNet]`.

They are those in bfloat16, and on a GPU (`--device cuda`) in TF32. Every line compares two answers to one question with
the same noise, timed in turns.
"""

import argparse
import math
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from report import head, line  # noqa: E402 # the paths come first
from workloads import WORKLOADS, Workload  # noqa: E402

from service import Predictor  # noqa: E402
from service.graph.precision import FLOAT32, PRECISIONS, TF32  # noqa: E402
from service.prediction import Prediction  # noqa: E402

COLUMNS = (
    *("workload", "rows", "products in", "float32, ms", "ms", "×"),
    *("mean moved, deviations", "variance moved, median"),
)


def compared(workload: Workload, predictor: Predictor, rows: int, rounds: int) -> Iterator[str]:
    """Yield a line on a workload for each precision but float32."""
    coarse = [each for each in PRECISIONS if each not in (FLOAT32, *([TF32] if predictor.device.type == "cpu" else []))]
    x, answers, least_s = workload.inputs(rows), dict[str, Prediction](), dict.fromkeys((FLOAT32, *coarse), math.inf)
    for _ in range(rounds):
        for precision in least_s:
            began = time.perf_counter()
            answers[precision] = predictor.predict(x, passes=workload.passes, precision=precision)
            least_s[precision] = min(least_s[precision], time.perf_counter() - began)
    mean, variance = answers[FLOAT32].mean, answers[FLOAT32].variance
    for name in coarse:
        moved = ((answers[name].mean - mean).abs() / variance.sqrt()).max().item()
        ratio = ((answers[name].variance - variance).abs() / variance).median().item()
        cells = [workload.name, str(rows), name, f"{least_s[FLOAT32] * 1e3:.1f}", f"{least_s[name] * 1e3:.1f}"]
        yield line([*cells, f"{least_s[FLOAT32] / least_s[name]:.2f}", f"{moved:.3f}", f"{ratio:.2%}"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--rounds", type=int, default=3, help="how often each precision is timed")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, …")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.export's own deprecations
    print(*head(COLUMNS), sep="\n")
    for workload in WORKLOADS:
        if asked.only in workload.name:
            predictor = Predictor.capture(workload.build(), workload.inputs(2), device=asked.device)
            for rows in workload.rows:
                print(*compared(workload, predictor, rows, asked.rounds), sep="\n", flush=True)


if __name__ == "__main__":
    main()
