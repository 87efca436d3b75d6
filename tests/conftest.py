import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # threads of several processes on the same cores wait for one another
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads it when it is imported, which torch may do

import pytest
import torch


@pytest.fixture(autouse=True)
def _own_random_state() -> None:
    torch.manual_seed(5)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run tests/load at its whole size")
    parser.addoption("--soak-s", type=float, help="how long tests/load soaks (seconds)")
