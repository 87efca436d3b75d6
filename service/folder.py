"""A model folder on disk: where its files lie, which versions it has, and how one is added; it runs no network.

    models/digits/model.toml            what goes in and what comes out (`service.datasheet`)
    models/digits/1/program.pt2         the network
    models/digits/1/manifest.json       SHA-256 and size of each file of the version
    models/digits/2/model.toml          only where version 2 differs from the folder's model.toml

A version is never changed once written. Nothing here is a symbolic link. That the program has the SHA-256 that its card
tells is checked by whoever reads its bytes, on the bytes that are read.
"""

import json
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex
from shutil import rmtree
from typing import TYPE_CHECKING, Any

from service.datasheet import Datasheet, datasheet_text, parse_datasheet
from service.errors import InvalidModelFolder, VersionNotFound
from service.signature import Input, Output

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SHEET = "model.toml"
PROGRAM = "program.pt2"
MANIFEST = "manifest.json"
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "a letter or digit, then letters, digits, '.', '_' or '-', 64 at most"
MAX_TEXT_BYTES = 1 << 20
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Card:
    """One version of a model on disk.

    Attributes:
        name: The model's name, which is its folder's.
        description: What it is, for people.
        version: The version described.
        versions: All versions there are, lowest first.
        inputs: The network's inputs, in order.
        outputs: The network's outputs, in order.
        passes: The number of passes where a request names none.
        seed: The seed where a request names none.
        variant: The variant where a request names none.
        program: The network's file.
        sha256: What the manifest says of that file's bytes, in lower-case hexadecimal.
        score: Held-out figures by name.
        lost: Modules whose randomness could not be captured.
    """

    name: str
    description: str
    version: int
    versions: tuple[int, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    passes: int
    seed: int
    variant: str
    program: Path
    sha256: str
    score: Mapping[str, float]
    lost: tuple[str, ...]


def read_card(folder: Path, version: int | str | None = None) -> Card:
    """Read what a model folder says of one of its versions; the program's bytes stay unread.

    Args:
        folder: The model's folder.
        version: The version, as a number or as its folder's name; None takes the highest.

    Raises:
        VersionNotFound: If the folder has no such version.
        InvalidModelFolder: If something is missing, malformed, of the wrong size or a symbolic link.
    """
    name = model_name(folder)
    versions = find_versions(folder)
    if not versions:
        raise InvalidModelFolder(
            f"{folder} has no version; add {folder / '1' / PROGRAM} with `thinnet export` or Predictor.save"
        )
    chosen = _choose(name, versions, version)
    home = folder / str(chosen)
    hashes = _read_manifest(home)
    sheet = _read_sheet(folder, home, hashes)
    return Card(
        name=name,
        description=sheet.description,
        version=chosen,
        versions=versions,
        inputs=sheet.inputs,
        outputs=sheet.outputs,
        passes=sheet.passes,
        seed=sheet.seed,
        variant=sheet.variant,
        program=home / PROGRAM,
        sha256=hashes[PROGRAM],
        score=sheet.score,
        lost=sheet.lost,
    )


def write_folder(folder: Path, program: "ExportedProgram", sheet: Datasheet, version: int | None = None) -> Path:
    """Add a version to a model folder, making the folder where there is none; it appears whole or not at all.

    Args:
        folder: The model's folder; its name is the model's.
        program: The network.
        sheet: What `model.toml` shall say of it.
        version: The version's number; None takes the one after the highest.

    Returns:
        The version's folder.

    Raises:
        InvalidModelFolder: If the version is there already, or a name or the datasheet is not valid.
    """
    model_name(folder)
    text = datasheet_text(sheet).encode()
    versions = find_versions(folder) if folder.exists() else ()
    number = max(versions, default=0) + 1 if version is None else version
    home = folder / str(number)
    if not _VERSION.fullmatch(str(number)) or home.exists():
        raise InvalidModelFolder(f"{home} cannot be written: it exists or is no version; give a new positive number")
    with _draft(folder) as draft:
        _save_program(program, draft / PROGRAM)
        _place_sheet(folder, draft, text, first=not versions)
        _write_manifest(draft)
        _publish(draft, home)
    return home


def model_name(folder: Path) -> str:
    """Return the name of the model in a folder.

    Raises:
        InvalidModelFolder: If it is not a name that a request could carry.
    """
    name = folder.resolve().name
    if not MODEL_NAME.fullmatch(name):
        raise InvalidModelFolder(f"{folder}: {name!r} is not a model's name; rename the folder: {NAME_RULE}")
    return name


def find_versions(folder: Path) -> tuple[int, ...]:
    """Return the versions in a model folder, lowest first.

    Raises:
        InvalidModelFolder: If the folder is not there, or a version's name or kind is wrong.
    """
    if not folder.is_dir():
        raise InvalidModelFolder(f"{folder} is not a model folder: there is no such directory; check the path")
    numbered = [entry for entry in folder.iterdir() if entry.name.isdigit()]
    for entry in numbered:
        if not _VERSION.fullmatch(entry.name):
            raise InvalidModelFolder(f"{entry} is not a version; rename it to a positive number without leading zeros")
        if entry.is_symlink() or not entry.is_dir():
            raise InvalidModelFolder(f"{entry} is a link or a file; put the version's own directory there")
    return tuple(sorted(int(entry.name) for entry in numbered))


def _choose(name: str, versions: tuple[int, ...], version: int | str | None) -> int:
    if version is None:
        return versions[-1]
    if _VERSION.fullmatch(str(version)) and int(version) in versions:
        return int(version)
    known = ", ".join(map(str, versions))
    raise VersionNotFound(f"the model {name!r} has no version {str(version)[:20]!r}; it has {known}")


def _read_sheet(folder: Path, home: Path, hashes: Mapping[str, str]) -> Datasheet:
    place = home / SHEET
    if not (place.exists() or place.is_symlink()):
        place = folder / SHEET
        return parse_datasheet(_content(place), str(place))
    content = _content(place)
    if hashes.get(SHEET) != sha256(content).hexdigest():
        raise InvalidModelFolder(f"{place} is not what {home / MANIFEST} says; restore it, or save a new version")
    return parse_datasheet(content, str(place))


def _read_manifest(home: Path) -> dict[str, str]:
    """Return each listed file's SHA-256, once its size and kind are checked."""
    place = home / MANIFEST
    try:
        files = json.loads(_content(place))["files"]
        listed = {name: (entry["sha256"], entry["bytes"]) for name, entry in files.items()}
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModelFolder(
            f'{place} is not {{"files": {{name: {{"sha256": …, "bytes": …}}}}}}; save the model again'
        ) from error
    if PROGRAM not in listed:
        raise InvalidModelFolder(f"{place} has no checksum of {PROGRAM}; save the model again")
    for name, (digest, size) in listed.items():
        _check_listed(home, name, digest, size)
    return {name: digest for name, (digest, _) in listed.items()}


def _check_listed(home: Path, name: str, digest: Any, size: Any) -> None:
    place = home / MANIFEST
    if not MODEL_NAME.fullmatch(name):
        raise InvalidModelFolder(f"{place} lists {name!r}, which is not a file of this version; list plain file names")
    if not (isinstance(digest, str) and _SHA256.fullmatch(digest)):
        raise InvalidModelFolder(f"{place}: the sha256 of {name} is not 64 hexadecimal digits; save the model again")
    found = _size(home / name)
    if found != size:
        raise InvalidModelFolder(
            f"{home / name} has {found} bytes and {MANIFEST} says {size}; it was cut or replaced, so copy it again"
        )


def _size(path: Path) -> int:
    try:
        found = path.lstat()
    except OSError as error:
        raise InvalidModelFolder(f"{path} cannot be read: {error.strerror}; save the model again") from error
    if not stat.S_ISREG(found.st_mode):
        raise InvalidModelFolder(f"{path} is a link or a directory; put the file itself there")
    return found.st_size


def _content(path: Path) -> bytes:
    size = _size(path)
    if size > MAX_TEXT_BYTES:
        raise InvalidModelFolder(f"{path} has {size} bytes and at most {MAX_TEXT_BYTES} are read; make it smaller")
    return path.read_bytes()


@contextmanager
def _draft(folder: Path) -> Iterator[Path]:
    """Make a hidden directory to write a version in; afterwards neither it nor an empty model folder stays."""
    draft = folder / f".draft-{token_hex(8)}"
    draft.mkdir(parents=True)
    try:
        yield draft
    finally:
        rmtree(draft, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()


def _place_sheet(folder: Path, draft: Path, text: bytes, *, first: bool) -> None:
    shared = folder / SHEET
    if not first and shared.exists():
        if shared.read_bytes() != text:
            (draft / SHEET).write_bytes(text)
        return
    written = draft / f"{SHEET}.new"
    written.write_bytes(text)
    written.replace(shared)


def _save_program(program: "ExportedProgram", path: Path) -> None:
    import torch  # only here, so that listing models does not wait seconds for torch

    torch.export.save(program, path)


def _write_manifest(draft: Path) -> None:
    files = {
        entry.name: {"sha256": sha256(entry.read_bytes()).hexdigest(), "bytes": entry.stat().st_size}
        for entry in sorted(draft.iterdir())
    }
    (draft / MANIFEST).write_text(json.dumps({"files": files}, indent=2) + "\n")


def _publish(draft: Path, home: Path) -> None:
    try:
        draft.rename(home)
    except OSError as error:
        raise InvalidModelFolder(f"{home} was written by someone else meanwhile; take another version") from error
