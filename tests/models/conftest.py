import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from service import Predictor
from service.folder import Card, read_card

MODELS = Path(__file__).parents[2] / "models"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: trains a model again; runs only with `pytest -m slow`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and "slow" not in config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="trains a model again; run with -m slow"))


@functools.cache
def _script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"train_{name}", MODELS / name / "train.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def script() -> Callable[[str], ModuleType]:
    """Return a model's `train.py` as a module."""
    return _script


@pytest.fixture
def card() -> Callable[[str], Card]:
    """Read a model's card."""
    return lambda name: read_card(MODELS / name)


@pytest.fixture
def predictor() -> Callable[[str], Predictor]:
    """Load a model afresh."""
    return lambda name: Predictor.load(MODELS / name)
