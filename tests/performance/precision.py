"""Measure what bfloat16 products do to time, mean and variance: `python tests/performance/precision.py [--only LeNet]`.

Every line compares two answers to one question with the same noise, timed in turns.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

import torch  # noqa: E402 # the paths come first
from workloads import WORKLOADS, Workload  # noqa: E402

from service import Predictor  # noqa: E402
from service.prediction import Prediction  # noqa: E402

PRECISIONS = ("float32", "bfloat16")


def compared(workload: Workload, predictor: Predictor, rows: int, rounds: int) -> str:
    """Return one line on a workload."""
    x, answers, least_s = workload.inputs(rows), dict[str, Prediction](), dict.fromkeys(PRECISIONS, float("inf"))
    for _ in range(rounds):
        for precision in PRECISIONS:
            began = time.perf_counter()
            answers[precision] = predictor.predict(x, passes=workload.passes, precision=precision)
            least_s[precision] = min(least_s[precision], time.perf_counter() - began)
    (mean, variance), (narrow_mean, narrow_variance) = (
        (torch.as_tensor(answers[each].mean), torch.as_tensor(answers[each].variance)) for each in PRECISIONS
    )
    moved = ((narrow_mean - mean).abs() / variance.sqrt()).max().item()
    ratio = ((narrow_variance - variance).abs() / variance).median().item()
    wide_s, narrow_s = least_s.values()
    return (
        f"| {workload.name} | {rows} | {wide_s * 1e3:.1f} | {narrow_s * 1e3:.1f} | {wide_s / narrow_s:.2f} "
        f"| {moved:.3f} | {ratio:.2%} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="workloads whose name holds this")
    parser.add_argument("--rounds", type=int, default=3, help="how often each precision is timed")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")  # torch.export's own deprecations
    print("| workload | rows | float32, ms | bfloat16, ms | × | mean moved, deviations | variance moved, median |")
    print("|---|---|---|---|---|---|---|")
    for workload in WORKLOADS:
        if asked.only in workload.name:
            predictor = Predictor.capture(workload.build(), workload.inputs(2))
            for rows in workload.rows:
                print(compared(workload, predictor, rows, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
