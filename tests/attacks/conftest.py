import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from caller import LIMITS, WAIT_S, works
from guarded import Serve
from processes import server
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


@pytest.fixture(scope="session")
def limited_port(line: Path) -> Iterator[int]:
    with server(str(line), **LIMITS) as address:
        yield int(address.rsplit(":", 1)[1])


@pytest.fixture
def port(limited_port: int) -> Iterator[int]:
    """The port of a server with small limits, which goes on after whatever a test did to it."""
    yield limited_port
    deadline = time.monotonic() + WAIT_S
    while not works(limited_port):
        assert time.monotonic() < deadline
