"""What a run is, so that the same run can go on and no other; it does not know where that is kept."""

import hashlib
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from service import __version__
from service.errors import InvalidInput, RunChanged
from service.scoring.engine import Engine, Parameters

_CURE = "put back what there was, or start anew with --restart (restart=True)"


@dataclass(frozen=True)
class Manifest:
    """What a run is.

    Attributes:
        thinnet: The program's version.
        files: The table's files, each with the SHA-256 of its content.
        model: The model's name, version and fingerprint.
        parameters: What every row is asked, as it was said.
        settled: The seed and the version, as they were found when the run began.
        passes: The passes that run at most, where they are known.
        engine: What answers.
        kept: What the engine must find again.
        block_rows: How many rows a block has.
    """

    thinnet: str
    files: Mapping[str, str]
    model: Mapping[str, Any]
    parameters: Mapping[str, Any]
    settled: Mapping[str, Any]
    passes: int | None
    engine: str
    kept: Mapping[str, Any]
    block_rows: int

    @classmethod
    def of(cls, files: Mapping[str, str], parameters: Parameters, settled: Parameters, engine: Engine) -> "Manifest":
        """Return what a run is that begins now."""
        told = engine.described
        return cls(
            thinnet=__version__,
            files=files,
            model={"name": told.model, "version": told.version, "fingerprint": told.fingerprint},
            parameters=_plain(asdict(parameters)),
            settled={"seed": settled.seed if told.seed is None else told.seed, "version": told.version},
            passes=told.passes,
            engine=engine.name,
            kept=dict(engine.kept),
            block_rows=sys.maxsize if told.couples_rows else engine.block_rows,
        )

    def check(self, now: "Manifest") -> None:
        """Check that a run is this one.

        Raises:
            RunChanged: It is another; with what changed.
        """
        changes = [*self._changes(now)]
        if changes:
            raise RunChanged(f"a run was begun here that is not this one: {'; '.join(changes)}; {_CURE}")

    def told(self) -> dict[str, Any]:
        """Return what readers of the result should know of how it came to be."""
        asked = {name: value for name, value in self.parameters.items() if value is not None}
        own = {"seed": self.settled["seed"], "passes": self.passes, "version": self.settled["version"]}
        known = {name: value for name, value in own.items() if value not in (None, "default")}
        return {"thinnet": self.thinnet, "model": self.model["name"], "engine": self.engine} | asked | known

    def _changes(self, now: "Manifest") -> Iterator[str]:
        if self.thinnet != now.thinnet:
            yield f"thinnet was {self.thinnet} and is {now.thinnet}"
        yield from _other_files(self.files, now.files)
        if self.engine != now.engine:
            yield f"the engine was {self.engine} and is {now.engine}"
        for name, value in self.parameters.items():
            if value != now.parameters.get(name):
                yield f"{name} was {_shown(value)} and is {_shown(now.parameters.get(name))}"
        if self.model["name"] != now.model["name"]:
            yield f"the model was {self.model['name']!r} and is {now.model['name']!r}"
        elif self.model != now.model:
            yield f"version {self.model['version']} of the model {self.model['name']!r} is another network now"


def settle(parameters: Parameters, before: Manifest | None) -> Parameters:
    """Return parameters whose seed is drawn, and whose version is the one that a run began with."""
    if before:
        return replace(parameters, **before.settled)
    return replace(parameters, seed=secrets.randbits(53)) if parameters.seed is None else parameters


def content_hashes(files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of each file's content, by its name.

    Raises:
        InvalidInput: One cannot be read.
    """
    return {file.name: _content_hash(file) for file in files}


def _content_hash(place: Path) -> str:
    try:
        with place.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidInput(f"{place} cannot be read: {error.strerror}; check the path") from error


def _other_files(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    if len(before) == len(now) == 1:
        if [*before.values()] != [*now.values()]:
            yield f"the rows of {next(iter(now))} are not those that it began with"
        return
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"the file {name} is gone"
        elif name not in before:
            yield f"the file {name} is new"
        elif before[name] != now[name]:
            yield f"the rows of {name} are not those that it began with"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they are after JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _shown(value: Any) -> str:
    return "left out" if value is None else repr(value)
