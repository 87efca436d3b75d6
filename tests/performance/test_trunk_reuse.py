"""What passes cost in deterministic forwards of the same network, in the same run.

`pytest tests/performance -s` prints the figures.
"""

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from service import Predictor

PASSES = 100


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 10),
    )  # fmt: skip


class Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.second, self.again = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        plain = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if plain else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.second(torch.relu(self.norm(self.first(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet18() -> nn.Module:
    """The 18-layer network of He et al. (2016), with one dropout before its head."""
    widths = [
        (64, 64, 1),
        (64, 64, 1),
        (64, 128, 2),
        (128, 128, 1),
        (128, 256, 2),
        (256, 256, 1),
        (256, 512, 2),
        (512, 512, 1),
    ]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 1000)]
    return nn.Sequential(*stem, *(Block(*each) for each in widths), *head)


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
    [(lenet, (1, 28, 28), 3.0, 200), (resnet18, (3, 224, 224), 1.2, 12)],
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
