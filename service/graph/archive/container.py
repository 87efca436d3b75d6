"""The zip file around an archive: which entries there may be, and a new one of only those; it does not know graphs.

Torch stores its entries as they are, so an honest file has nothing compressed and unpacks to no more than it holds.
"""

import io
import stat
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping

from torch.export.pt2_archive import PT2ArchiveWriter
from torch.export.pt2_archive.constants import ARCHIVE_FORMAT_VALUE, ARCHIVE_VERSION_VALUE

from service.errors import UnsafeArchive
from service.graph.archive.payloads import CONSTANT, WEIGHT

MODEL = "models/model.json"
WEIGHTS, WEIGHTS_CONFIG = "data/weights/", "data/weights/model_weights_config.json"
CONSTANTS, CONSTANTS_CONFIG = "data/constants/", "data/constants/model_constants_config.json"
SAMPLE_INPUTS = "data/sample_inputs/model.pt"
MAX_ENTRIES = 100_000
MAX_JSON_BYTES = 64 << 20
_MARKS = {"archive_format": ARCHIVE_FORMAT_VALUE, "archive_version": ARCHIVE_VERSION_VALUE, "byteorder": "little"}
_UNREAD = {SAMPLE_INPUTS, ".data/version", ".data/serialization_id", ".format_version", ".storage_alignment", "version"}
_UNREAD_FOLDER = "extra/"  # what torch.export.save was given as extra_files
_FAULTS = (zipfile.BadZipFile, ValueError, OSError, EOFError, RuntimeError, NotImplementedError, struct.error, KeyError)


class Container:
    """The entries of an archive that may be read, by their names below its root.

    Attributes:
        sizes: Bytes of each entry.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._zip = zipfile.ZipFile(io.BytesIO(data))
        except _FAULTS as error:
            raise _damaged(error) from error
        infos = self._zip.infolist()
        _check_all(infos, len(data))
        self._entries = {name: info for name, info in _below_root(infos) if _is_read(name)}
        self.sizes = {name: info.file_size for name, info in self._entries.items()}
        self._check_marks()

    def read(self, name: str) -> bytes:
        """Return an entry's bytes.

        Raises:
            UnsafeArchive: It is missing or damaged.
        """
        if name not in self._entries:
            raise UnsafeArchive(f"the entry {name!r} is missing; export the network again with torch.export.save")
        try:
            return self._zip.read(self._entries[name])
        except _FAULTS as error:
            raise _damaged(error) from error

    def read_text(self, name: str) -> bytes:
        """Return the bytes of an entry of JSON, which is small.

        Raises:
            UnsafeArchive: It is missing, damaged or too large.
        """
        if self.sizes.get(name, 0) > MAX_JSON_BYTES:
            raise UnsafeArchive(f"{name} has {self.sizes[name]} bytes and at most {MAX_JSON_BYTES} are read")
        return self.read(name)

    def sizes_in(self, folder: str) -> dict[str, int]:
        """Return the sizes of the entries in a folder, by their names below it."""
        return {name.removeprefix(folder): size for name, size in self.sizes.items() if name.startswith(folder)}

    def _check_marks(self) -> None:
        for name, value in _MARKS.items():
            if name in self._entries and self.read(name) != value.encode():
                raise UnsafeArchive(f"{name} is not {value!r}; export the network again with torch.export.save")


def rewritten(container: Container, texts: Mapping[str, bytes], kept: Iterable[str]) -> io.BytesIO:
    """Write an archive of some checked texts and of entries taken as they are; its sample inputs are empty."""
    buffer = io.BytesIO()
    with PT2ArchiveWriter(buffer) as writer:
        for name in kept:
            writer.write_bytes(name, container.read(name))
        for name, text in {**texts, SAMPLE_INPUTS: b""}.items():
            writer.write_bytes(name, text)
    buffer.seek(0)
    return buffer


def _check_all(infos: list[zipfile.ZipInfo], available: int) -> None:
    if len(infos) > MAX_ENTRIES:
        raise UnsafeArchive(f"it has {len(infos)} entries and at most {MAX_ENTRIES} are read")
    for info in infos:
        _check_entry(info)
    if sum(info.file_size for info in infos) > available:
        raise UnsafeArchive("it unpacks to more than it holds; export the network again with torch.export.save")
    names = [info.orig_filename for info in infos]
    if len(set(names)) != len(names):
        raise UnsafeArchive("an entry's name is there twice; export the network again with torch.export.save")


def _check_entry(info: zipfile.ZipInfo) -> None:
    name = info.orig_filename
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or any(each in name for each in ("\\", "\0", ":")):
        raise UnsafeArchive(f"the entry {name[:80]!r} climbs out of the archive; do not use this file")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise UnsafeArchive(f"the entry {name[:80]!r} is a symbolic link; do not use this file")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise UnsafeArchive(
            f"the entry {name[:80]!r} is compressed or encrypted, so that it unpacks to more than it holds; torch "
            "stores entries as they are: export the network again with torch.export.save"
        )


def _below_root(infos: list[zipfile.ZipInfo]) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    root = infos[0].orig_filename.split("/")[0] if infos else ""
    for info in infos:
        first, _, name = info.orig_filename.partition("/")
        if first != root or not name:
            raise UnsafeArchive(
                f"the entry {info.orig_filename[:80]!r} is not of an exported program; export the network again with "
                "torch.export.save of torch 2.13"
            )
        yield name, info


def _is_read(name: str) -> bool:
    """Tell whether an entry is read or left out.

    Raises:
        UnsafeArchive: It is neither.
    """
    if name in _UNREAD or name.startswith(_UNREAD_FOLDER):
        return False
    weight = name.startswith(WEIGHTS) and WEIGHT.fullmatch(name.removeprefix(WEIGHTS))
    constant = name.startswith(CONSTANTS) and CONSTANT.fullmatch(name.removeprefix(CONSTANTS))
    if name in (MODEL, WEIGHTS_CONFIG, CONSTANTS_CONFIG, *_MARKS) or weight or constant:
        return True
    raise UnsafeArchive(
        f"the entry {name[:80]!r} is not a network's weights or graph, and may be code or a pickle; export the network "
        "with torch.export.save, without compiled parts or custom objects"
    )


def _damaged(error: Exception) -> UnsafeArchive:
    return UnsafeArchive(f"it is not a whole zip file ({str(error)[:80]}); copy it again")
