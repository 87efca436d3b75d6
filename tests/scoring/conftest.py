import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from service import Predictor
from service.signature import Activation, Input, Output, Task

FEATURES = ("age", "height", "weight")
Table = list[list[str]]


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    """Three features with names, standardised; three labelled classes."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        return Predictor.capture(
            net.eval(),
            torch.randn(2, 3),
            inputs=[Input("x", "float32", (3,), FEATURES, mean=(40.0, 170.0, 70.0), std=(10.0, 10.0, 15.0))],
            outputs=[Output("kind", Task.CLASSIFICATION, (3,), Activation.SOFTMAX, ("red", "green", "blue"))],
        )


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """Seven hundred people, which is three blocks, their columns in an order of their own."""
    x = torch.randn(700, 3, generator=torch.Generator().manual_seed(4)) * 10
    path = tmp_path / "people.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["weight", "id", "age", "height"])
        writer.writerows(
            [f"{70 + w:.4f}", f"p{row}", f"{40 + a:.4f}", f"{170 + h:.4f}"] for row, (a, h, w) in enumerate(x.tolist())
        )
    return path


@pytest.fixture
def features_of() -> Callable[[Path], torch.Tensor]:
    def read(path: Path) -> torch.Tensor:
        with path.open(newline="") as file:
            return torch.tensor([[float(row[name]) for name in FEATURES] for row in csv.DictReader(file)])

    return read


@pytest.fixture
def read_table() -> Callable[[Path], tuple[list[str], Table]]:
    def read(path: Path) -> tuple[list[str], Table]:
        with path.open(newline="") as file:
            header, *rows = csv.reader(file)
        return header, rows

    return read
