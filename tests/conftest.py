import os

os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_random_state() -> None:
    torch.manual_seed(5)
