from pathlib import Path

import pytest
import torch
from guarded import Serve
from torch import nn

from service import Predictor


@pytest.fixture(scope="session")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one small model."""
    folder = tmp_path_factory.mktemp("models")
    network = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.25), nn.Linear(4, 1)).eval()
    Predictor.capture(network, torch.randn(2, 3)).save(folder / "line", description="A line")
    return folder


@pytest.fixture(scope="session")
def serve(line: Path) -> Serve:
    return Serve(line)
