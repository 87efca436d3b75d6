from collections.abc import Iterator
from pathlib import Path

import pytest
from asks import save_folder
from process import Served, serving
from sizes import QUICK, WHOLE, Sizes

LIMITS = {"THINNET_MAX_ROW_PASSES": "20000", "THINNET_MAX_BODY_BYTES": "1000000"}


@pytest.fixture(scope="session")
def sizes(request: pytest.FixtureRequest) -> Sizes:
    return WHOLE if request.config.getoption("--whole") else QUICK


@pytest.fixture(scope="session")
def soak_s(request: pytest.FixtureRequest, sizes: Sizes) -> float:
    return float(request.config.getoption("--soak-s") or sizes.soak_s)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_folder(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def served(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server that tests share who leave it as it was; it has narrow limits, for what fuzzers ask."""
    with serving(folder, tmp_path_factory.mktemp("log") / "log", **LIMITS) as found:
        yield found
        log = found.log.read_text()
        assert "Traceback" not in log, log[-3000:]
