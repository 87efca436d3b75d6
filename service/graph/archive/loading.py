"""From a file's bytes, read once, to an exported program; it does not know what the program computes."""

import hashlib
import io
import json
import stat
import warnings
from pathlib import Path
from threading import Lock
from typing import Any

from torch._export.serde import schema
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import load_pt2

from service.errors import InvalidModelFolder, UnsafeArchive
from service.graph.archive import container
from service.graph.archive.container import Container, rewritten
from service.graph.archive.payloads import CONSTANT, MAX_BYTES, WEIGHT, check_payloads
from service.graph.archive.plain_json import parse_json
from service.graph.archive.serialized import checked_copy

_loading = (
    Lock()
)  # torch keeps the deserialiser that runs in a global; Python 3.11's `ast` fails now and then in threads


def load_program(path: Path, sha256: str | None = None) -> ExportedProgram:
    """Load a `.pt2` file on the CPU without running anything that it brings.

    Args:
        path: The file, as `torch.export.save` or `Predictor.save` wrote it.
        sha256: The lower-case hexadecimal checksum that its bytes must have; None trusts none and checks all the same.

    Raises:
        InvalidModelFolder: The file cannot be read.
        UnsafeArchive: It would do more than compute, is damaged, or is not what its checksum says.
    """
    data = _read(path)
    try:
        with _loading:
            return _load(_checked_archive(data, sha256))
    except UnsafeArchive as error:
        raise UnsafeArchive(f"{path}: {error}") from error


def _read(path: Path) -> bytes:
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise InvalidModelFolder(f"{path} is not a file; give the path of a .pt2 file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidModelFolder(
            f"{path} cannot be read: {error.strerror}; check the path and its permissions"
        ) from error
    if len(data) > MAX_BYTES:
        raise UnsafeArchive(f"{path}: it has more than the {MAX_BYTES} bytes that are read")
    return data


def _checked_archive(data: bytes, sha256: str | None) -> io.BytesIO:
    """Return an archive of what was checked, and only that."""
    digest = hashlib.sha256(data).hexdigest()
    if sha256 is not None and digest != sha256:
        raise UnsafeArchive(
            f"its SHA-256 is {digest}, not {sha256} as listed; restore the file or save the model again"
        )
    entries = Container(data)
    model = _copy(entries, container.MODEL, schema.ExportedProgram)
    weights = _copy(entries, container.WEIGHTS_CONFIG, schema.PayloadConfig)
    constants = _copy(entries, container.CONSTANTS_CONFIG, schema.PayloadConfig)
    used = [
        folder + name
        for folder, config, pattern in (
            (container.WEIGHTS, weights, WEIGHT),
            (container.CONSTANTS, constants, CONSTANT),
        )
        for name in sorted(check_payloads(config, entries.sizes_in(folder), pattern))
    ]
    texts = {container.MODEL: model, container.WEIGHTS_CONFIG: weights, container.CONSTANTS_CONFIG: constants}
    return rewritten(entries, {name: json.dumps(value).encode() for name, value in texts.items()}, used)


def _copy(entries: Container, name: str, kind: Any) -> dict[str, Any]:
    value = parse_json(entries.read_text(name), name)
    try:
        return checked_copy(kind, value)
    except UnsafeArchive as error:
        raise UnsafeArchive(f"{name}: {error}") from error


def _load(archive: io.BytesIO) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on its own loading
            program: ExportedProgram = load_pt2(archive).exported_programs["model"]
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
        raise UnsafeArchive(f"torch cannot read the program ({reason}); export it again with this torch") from error
    return program
