from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import Script, Scripted
from served import listening, save_models

from service.api import create_app
from service.client import Client
from service.repository import Repository
from service.settings import Settings


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def address(folder: Path) -> Iterator[str]:
    """A real server over a real socket, with small limits."""
    settings = Settings(models=folder, max_rows=1000, max_passes=1000)
    with listening(create_app(settings, Repository(folder))) as found:
        yield found


@pytest.fixture(scope="session")
def client(address: str) -> Iterator[Client]:
    with Client(address) as found:
        yield found


@pytest.fixture
def script() -> Iterator[Script]:
    """Make a server that says what it is told to."""
    made: list[Scripted] = []

    def start(*answers: bytes, wait_s: float = 0.0) -> Scripted:
        made.append(Scripted(answers, wait_s))
        return made[-1]

    yield start
    for each in made:
        each.close()
