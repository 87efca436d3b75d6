"""The models that are served: a folder of model folders, read at the start and when told to; it does not know HTTP.

Names and versions are looked up among those found then; a request's text never becomes a path. What cannot be served
leaves the rest standing and answers with its reason: a broken version leaves the one below it, and what was served
before a second reading goes on where the new state of the folder cannot be.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from service.errors import InvalidModelFolder, ModelNotFound, NotReady, ThinnetError, VersionNotFound
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


def _nothing() -> None: ...


class Repository:
    """The models of a folder, each with the versions that can be asked for.

    Args:
        folder: A folder of model folders, or a single model folder.
        device: Where networks run.
        versions_kept: How many versions of each model are loaded, the highest ones, now; others are refused. None loads
            the highest now and others when first asked for.

    Attributes:
        faults: Why a model cannot be served, by its name.
        version_faults: Why a version cannot be served though its model is, by the model's name and the version.

    Raises:
        InvalidModelFolder: The folder is not there, or nothing in it can be served.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu", versions_kept: int | None = None) -> None:
        self._folder, self._device, self._kept = folder, check_device(device), versions_kept
        self._models: dict[str, dict[int, Version]] = {}
        self._unloaded: dict[str, set[int]] = {}
        self.faults: dict[str, str] = {}
        self.version_faults: dict[str, dict[int, str]] = {}
        self._read_all({}, _nothing)

    def reload(self, pause: Callable[[], None] = _nothing) -> "Repository":
        """Read the folder again; networks that are the same, by checksum and signature, are kept and not loaded again.

        Args:
            pause: Called before each model.

        Raises:
            InvalidModelFolder: The folder is not there, or nothing in it can be served.
        """
        new = copy(self)
        new._models, new._unloaded, new.faults, new.version_faults = {}, {}, {}, {}
        new._read_all(self._models, pause)
        return new

    def names(self) -> list[str]:
        """Return the names of the models that are served, in order."""
        return sorted(self._models)

    def versions(self, name: str) -> list[int]:
        """Return the versions of a model that can be asked for, lowest first.

        Raises:
            ModelNotFound: No model has this name.
            NotReady: It is there and cannot be served.
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

    def is_loaded(self, name: str, version: int | str | None = None) -> bool:
        """Tell whether a model's predictor can be had without loading it.

        Raises:
            ModelNotFound, VersionNotFound: There is no such thing.
        """
        return self._version(name, version).predictor is not None

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
        names = sorted(self._models.keys() | self.faults.keys())
        if len(names) > 1:
            raise ModelNotFound(f"several models are served, name one in `model`: {', '.join(names)}")
        return names[0]

    def _read_all(self, before: Mapping[str, dict[int, Version]], pause: Callable[[], None]) -> None:
        try:
            homes = list(_model_folders(self._folder))
        except OSError as error:  # a mount that this user may not read
            raise InvalidModelFolder(f"{error.filename}: {error.strerror}; let user {os.getuid()} read it") from None
        for home in homes:
            pause()
            self._read(home, before.get(home.name, {}))
        if not self._models:
            reasons = "; ".join(self.faults.values()) or "it has no model folder with a model.toml"
            raise InvalidModelFolder(f"nothing in {self._folder} can be served: {reasons}")

    def _read(self, home: Path, before: Mapping[int, Version]) -> None:
        """Read one model's folder; `before` is what was served of it until now."""
        name, faults = home.name, self.version_faults.setdefault(home.name, {})
        try:
            numbers = find_versions(home)
            if not numbers:
                read_card(home)  # says what is missing
        except ThinnetError as error:
            numbers, faults[0] = (), str(error)
        chosen: dict[int, Version] = {}
        for number in reversed(numbers):
            if len(chosen) >= (self._kept or 1):
                break
            entry = self._entry(home, number, before.get(number), faults)
            if entry is not None:
                chosen[number] = entry
        if not chosen:
            chosen = {number: entry for number, entry in before.items() if entry.predictor is not None}
        if chosen:
            self._models[name] = chosen
            self._note_others(home, set(numbers) - chosen.keys() - faults.keys())
        else:
            self.faults[name] = "; ".join(faults.values())
        if not (chosen and faults):
            del self.version_faults[name]

    def _entry(self, home: Path, number: int, before: Version | None, faults: dict[int, str]) -> Version | None:
        """Return a version with its predictor; the one from before where it cannot be read again, None without one."""
        entry, fault = None, None
        try:
            entry = Version(read_card(home, number))
        except ThinnetError as error:
            fault = str(error)
        if entry is not None:
            if before is not None and _same_network(before.card, entry.card):
                entry.predictor = before.predictor
            fault = self._load(entry) if entry.predictor is None else None
        if fault is None:
            return entry
        faults[number] = fault
        return before if before is not None and before.predictor is not None else None

    def _note_others(self, home: Path, numbers: set[int]) -> None:
        """Say of versions that are not loaded whether they will be when asked for."""
        if self._kept is not None:
            self._unloaded[home.name] = numbers
            return
        for number in numbers:
            try:
                self._models[home.name][number] = Version(read_card(home, number))
            except ThinnetError as error:
                self.version_faults.setdefault(home.name, {})[number] = str(error)

    def _load(self, entry: Version) -> str | None:
        """Load a version, or return why it cannot be."""
        try:
            predictor = Predictor.load(entry.card.program.parents[1], entry.card.version, self._device)
            predictor.warm_up()
            entry.predictor = predictor
        except ThinnetError as error:
            entry.fault = str(error)
        except RuntimeError as error:
            entry.fault = f"its first passes fail: {str(error).splitlines()[0]}"
        return entry.fault

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
        for number, fault in self.version_faults.get(name, {}).items():
            if str(number) == str(version):
                raise NotReady(f"model {name!r}, version {number}, cannot be served: {fault}")
        known = ", ".join(map(str, sorted(entries)))
        if any(str(number) == str(version) for number in self._unloaded.get(name, ())):
            raise VersionNotFound(
                f"model {name!r}, version {version}, is not loaded: the {self._kept} highest are, here {known}; "
                "ask for one of them, or serve with a higher versions_kept"
            )
        raise VersionNotFound(f"model {name!r} has no version {str(version)[:20]!r}; it has {known}")


def _same_network(one: Card, other: Card) -> bool:
    """Whether a predictor of one card answers for the other: all but what people are told is the same."""
    return replace(one, versions=(), description="", score={}) == replace(other, versions=(), description="", score={})


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


def named_device(device: str) -> str:
    """Return a device's name; `auto` is the first GPU, or the CPU where torch sees none."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.device_count() else "cpu"  # to count them does not spoil a fork


def check_device(device: torch.device | str) -> torch.device:
    """Return a device that this machine has.

    Raises:
        NotReady: The name is unknown, or there is no such device.
    """
    try:
        found = torch.device(named_device(str(device)))
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise NotReady(
            f"device {str(device)!r} cannot be used: {str(error).splitlines()[0]}; try auto or cpu"
        ) from None
    return found
