from collections.abc import Iterator
from pathlib import Path

import pytest
from served import save_models
from starlette.testclient import TestClient

from service.api import create_app
from service.repository import Repository
from service.settings import Settings


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def client(folder: Path) -> Iterator[TestClient]:
    settings = Settings(models=folder, max_body_bytes=1 << 20, max_rows=1000, max_row_passes=1_000_000)
    app = create_app(settings, Repository(folder))
    with TestClient(app, raise_server_exceptions=False) as found:
        yield found
