from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import server
from served import save_models


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server over a real socket."""
    folder: Path = save_models(tmp_path_factory.mktemp("models"))
    with server(str(folder)) as found:
        yield found
