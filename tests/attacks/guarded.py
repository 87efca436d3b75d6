"""A server in this process, with the settings and keys of a test."""

from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from service.api import create_app
from service.api.keys import Keys
from service.repository import Repository
from service.settings import Settings


class Serve:
    """Serve a folder of models.

    Its models are loaded once, for all settings.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._repository = folder, Repository(folder)

    def __call__(self, keys: Keys | None = None, **settings: Any) -> TestClient:
        app = create_app(Settings(models=self.folder, **settings), self._repository, keys or Keys())
        return TestClient(app, raise_server_exceptions=False)
