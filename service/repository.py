"""The models that are served: a folder of model folders, read once at the start; it does not know HTTP.

Names and versions are looked up among those found then; a request's text never becomes a path. A model that cannot be
served leaves the others standing and answers with its reason.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from service.errors import BadRequest, InvalidModelFolder, ModelNotFound, NotReady, ThinnetError, VersionNotFound
from service.folder import MAX_TEXT_BYTES, MODEL_NAME, Card, find_versions, read_card
from service.predictor import Predictor

EXAMPLE = "example.json"


@dataclass
class Version:
    """One version of a model: its card, and its predictor once it is loaded."""

    card: Card
    predictor: Predictor | None = None
    fault: str | None = None
    lock: Lock = field(default_factory=Lock)


class Repository:
    """The models of a folder; the highest version of each is loaded at the start, others when first asked for.

    Args:
        folder: A folder of model folders, or a single model folder.
        device: Where networks run.

    Attributes:
        faults: Why a model cannot be served, by its name.

    Raises:
        InvalidModelFolder: The folder is not there, or nothing in it can be served.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        self._device = check_device(device)
        self._models: dict[str, dict[int, Version]] = {}
        self.faults: dict[str, str] = {}
        try:
            homes = list(_model_folders(folder))
        except OSError as error:  # a mount that this user may not read
            raise InvalidModelFolder(f"{error.filename}: {error.strerror}; let user {os.getuid()} read it") from None
        for home in homes:
            self._read(home)
        if not any(self._models.values()):
            reasons = "; ".join(self.faults.values()) or "it has no model folder with a model.toml"
            raise InvalidModelFolder(f"nothing in {folder} can be served: {reasons}")

    def names(self) -> list[str]:
        """Return the names of the models that are served, in order."""
        return sorted(self._models)

    def versions(self, name: str) -> list[int]:
        """Return a model's versions, lowest first.

        Raises:
            ModelNotFound: No model has this name.
        """
        return sorted(self._model(name))

    def card(self, name: str, version: int | str | None = None) -> Card:
        """Return what the folder says of a model; None takes the highest version.

        Raises:
            ModelNotFound, VersionNotFound: There is no such thing.
        """
        return self._version(name, version).card

    def predictor(self, name: str, version: int | str | None = None) -> Predictor:
        """Return a model's predictor, loading it where it is not; None takes the highest version.

        Raises:
            ModelNotFound, VersionNotFound: There is no such thing.
            NotReady: It is there and cannot be served.
        """
        entry = self._version(name, version)
        with entry.lock:
            if entry.predictor is None and entry.fault is None:
                self._load(entry)
            if entry.predictor is None:
                raise NotReady(f"model {name!r}, version {entry.card.version}, cannot be served: {entry.fault}")
            return entry.predictor

    def example(self, name: str) -> dict[str, Any] | None:
        """Return a model's example request, `example.json` in its folder, where it has one."""
        place = self.card(name).program.parents[1] / EXAMPLE
        if not place.is_file() or place.stat().st_size > MAX_TEXT_BYTES:
            return None
        found = json.loads(place.read_bytes())
        return found if isinstance(found, dict) else None

    def sole_name(self) -> str:
        """Return the only model's name.

        Raises:
            ModelNotFound: There are several.
        """
        if len(self._models) > 1:
            raise ModelNotFound(f"several models are served, name one in `model`: {', '.join(self.names())}")
        return self.names()[0]

    def _read(self, home: Path) -> None:
        try:
            entries = {version: Version(read_card(home, version)) for version in find_versions(home)}
            newest = entries[read_card(home).version]
        except ThinnetError as error:
            self.faults[home.name] = str(error)
            return
        self._load(newest)
        if newest.fault is not None:
            self.faults[home.name] = newest.fault
        self._models[home.name] = entries

    def _load(self, entry: Version) -> None:
        try:
            entry.predictor = Predictor.load(entry.card.program.parents[1], entry.card.version, self._device)
            warm_up(entry.predictor)
        except ThinnetError as error:
            entry.predictor, entry.fault = None, str(error)

    def _model(self, name: str) -> dict[int, Version]:
        if name in self._models:
            return self._models[name]
        if name in self.faults:
            raise NotReady(f"model {name!r} cannot be served: {self.faults[name]}")
        raise ModelNotFound(f"there is no model {name[:80]!r}; the models are {', '.join(self.names())}")

    def _version(self, name: str, version: int | str | None) -> Version:
        entries = self._model(name)
        if version is None:
            return entries[max(entries)]
        for number, entry in entries.items():
            if str(number) == str(version):
                return entry
        known = ", ".join(map(str, sorted(entries)))
        raise VersionNotFound(f"model {name!r} has no version {str(version)[:20]!r}; it has {known}")


def _model_folders(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        raise InvalidModelFolder(f"{folder} is not a folder of models; give the path of one")
    if (folder / "model.toml").exists():
        yield folder.resolve()
        return
    for home in sorted(folder.iterdir()):
        if (
            home.is_dir()
            and not home.is_symlink()
            and MODEL_NAME.fullmatch(home.name)
            and (home / "model.toml").exists()
        ):
            yield home


def check_device(device: torch.device | str) -> torch.device:
    """Return a device that this machine has.

    Raises:
        NotReady: The name is unknown, or there is no such device.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise NotReady(f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}; try cpu") from None
    return found


def warm_up(predictor: Predictor) -> None:
    """Run the default plan once, where it has active sites, so that the first request finds it compiled."""
    with suppress(BadRequest):  # as trained it has nothing active: the request will say so
        predictor.mode()
