"""What passes cost in deterministic forwards of the same network, in the same run.

`pytest tests/performance -s` prints the figures.
"""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from workloads import lenet, resnet

from service import Predictor

PASSES = 100


def least_s(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def compared(first: Callable[[], object], second: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Return the least time of each, taken in turns so that noise hits both."""
    times = [(least_s(first), least_s(second)) for _ in range(rounds)]
    return min(a for a, _ in times), min(b for _, b in times)


@pytest.mark.parametrize(
    ("make", "shape", "limit", "rounds"),
    [(lenet, (1, 28, 28), 3.0, 200), (resnet, (3, 224, 224), 1.2, 12)],
    ids=["lenet", "resnet18"],
)
def test_a_hundred_passes_cost_little_more_than_one(
    make: Callable[[], nn.Module], shape: tuple[int, ...], limit: float, rounds: int
) -> None:
    network, x = make().eval(), torch.randn(1, *shape)
    predictor = Predictor.capture(network, x)

    def forward() -> Tensor:
        with torch.inference_mode():
            result: Tensor = network(x)
            return result

    predictor.predict(x, passes=PASSES)
    one_s, all_s = compared(forward, lambda: predictor.predict(x, passes=PASSES), rounds)
    told = f"forward {one_s * 1e3:.2f} ms, {PASSES} passes {all_s * 1e3:.2f} ms, ratio {all_s / one_s:.2f}"
    print(f"\n{make.__name__}: {told}")
    assert all_s < limit * one_s
