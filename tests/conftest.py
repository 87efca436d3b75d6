import os
import signal

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # threads of several processes on the same cores wait for one another
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ["TRITON_INTERPRET"] = "1"  # kernels run on the CPU; Triton reads it when it is imported, which torch may do
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in a shell's background, and so would be what it starts
    signal.signal(signal.SIGINT, signal.default_int_handler)

from typing import Any

import pytest
import torch

ZOO = {
    f"tests/graph/test_{name}.py" for name in ("candidates", "coverage", "integrated_zoo", "laws", "saving", "thinning")
}
SERVED = {"tests/attacks", "tests/conformance", "tests/load"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give files to one process whose tests share what is dear: the zoo's networks once captured, a folder's server."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class SharingTogether(LoadFileScheduling):  # type: ignore[misc] # it has no types
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            folder = file.rpartition("/")[0]
            return "the zoo" if file in ZOO else folder if folder in SERVED else file

    return SharingTogether(config, log)


@pytest.fixture(autouse=True)
def _own_random_state() -> None:
    torch.manual_seed(5)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run tests/load at its whole size")
    parser.addoption("--soak-s", type=float, help="how long tests/load soaks (seconds)")
