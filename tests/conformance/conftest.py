from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import server
from served import save_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """A real server over a real socket."""
    with server(str(folder)) as found:
        yield found
