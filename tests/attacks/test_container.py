"""Files that are not the zip they should be: entries that climb out, hide, repeat or swell, and plain damage."""

import hashlib
import io
import random
import stat
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import forge
import pytest

from service.errors import InvalidModelFolder, ThinnetError, UnsafeArchive
from service.graph.archive import container, load_program, loading


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "program.pt2"
    path.write_bytes(data)
    return path


def with_entry(name: str, data: bytes = b"x", **attributes: int) -> bytes:
    """Return the honest archive with one more entry."""
    info = zipfile.ZipInfo(name)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    buffer = io.BytesIO(forge.packed(forge.honest()))
    with zipfile.ZipFile(buffer, "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's remark on a repeated name
        archive.writestr(info, data)
    return buffer.getvalue()


def overlapping() -> bytes:
    """Return an archive of which many entries are the same bytes."""
    buffer = io.BytesIO(forge.packed({**forge.honest(), "data/weights/weight_9": bytes(50_000)}))
    with zipfile.ZipFile(buffer, "a") as archive:
        big = next(info for info in archive.filelist if info.filename.endswith("weight_9"))
        for index in range(10, 40):
            twin = zipfile.ZipInfo(f"archive/data/weights/weight_{index}")
            twin.header_offset, twin.file_size, twin.compress_size = big.header_offset, big.file_size, big.file_size
            twin.CRC = big.CRC
            archive.filelist.append(twin)
        archive.writestr("archive/extra/last", b"")
    return buffer.getvalue()


def without(name: str) -> bytes:
    return forge.packed({each: data for each, data in forge.honest().items() if each != name})


def marked(name: str, data: bytes) -> bytes:
    return forge.packed({**forge.honest(), name: data})


REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a name that climbs out": (lambda: with_entry("archive/../../evil"), r"'archive/\.\./\.\./evil' climbs out"),
    "an absolute name": (lambda: with_entry("/etc/evil"), r"'/etc/evil' climbs out"),
    "a name with backslashes": (lambda: with_entry("archive\\evil"), r"'archive\\\\evil' climbs out"),
    "a name with a drive": (lambda: with_entry("c:evil"), r"'c:evil' climbs out"),
    "a symbolic link": (
        lambda: with_entry("archive/extra/link", b"/etc", external_attr=(stat.S_IFLNK | 0o777) << 16),
        r"'archive/extra/link' is a symbolic link",
    ),
    "a name that is there twice": (lambda: with_entry("archive/byteorder", b"little"), r"name is there twice"),
    "a file beside the root": (
        lambda: with_entry("other/byteorder"),
        r"'other/byteorder' is not of an exported program",
    ),
    "compiled code": (lambda: with_entry("archive/data/aotinductor/model/x.so"), r"x.so' is not a network's weights"),
    "a second network": (lambda: with_entry("archive/models/other.json"), r"'models/other.json' is not a network's"),
    "a script object": (lambda: with_entry("archive/data/constants/custom_obj_0"), r"custom_obj_0' is not a network's"),
    "a compressed archive": (
        lambda: forge.packed(forge.honest(), compression=zipfile.ZIP_DEFLATED),
        r"is compressed or encrypted, so that it unpacks to more than it holds",
    ),
    "a compressed bomb": (
        lambda: with_entry("archive/extra/bomb", bytes(10_000_000), compress_type=zipfile.ZIP_DEFLATED),
        r"'archive/extra/bomb' is compressed or encrypted",
    ),
    "entries that are the same bytes": (overlapping, r"it unpacks to more than it holds"),
    "no graph": (lambda: without(forge.MODEL), r"entry 'models/model.json' is missing; export the network again"),
    "no list of weights": (lambda: without(forge.WEIGHTS), r"model_weights_config.json' is missing"),
    "no list of constants": (lambda: without(forge.CONSTANTS), r"model_constants_config.json' is missing"),
    "no weights": (lambda: without("data/weights/weight_0"), r"said to lie in 'weight_0', which is not there"),
    "another format": (lambda: marked("archive_format", b"zip"), r"archive_format is not 'pt2'"),
    "another version": (lambda: marked("archive_version", b"9"), r"archive_version is not '0'"),
    "the bytes of another processor": (lambda: marked("byteorder", b"big"), r"byteorder is not 'little'"),
    "a file of an old torch": (lambda: forge.packed({"version": b"8.2"}, root=""), r"'version' is not of an exported"),
    "an empty zip file": (lambda: forge.packed({}), r"is missing"),
    "no zip file": (lambda: b"not a zip", r"it is not a whole zip file"),
    "an empty file": (lambda: b"", r"it is not a whole zip file"),
    "half a file": (lambda: forge.honest_bytes()[: len(forge.honest_bytes()) // 2], r"it is not a whole zip file"),
}


@pytest.mark.parametrize(("data", "message"), REFUSED.values(), ids=REFUSED)
def test_an_archive_is_only_what_torch_writes_for_a_network(
    data: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, data())
    with pytest.raises(UnsafeArchive, match=message) as refusal:
        load_program(path)
    assert str(refusal.value).startswith(f"{path}: ")


def test_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, forge.honest_bytes())
    right = hashlib.sha256(forge.honest_bytes()).hexdigest()
    assert load_program(path, sha256=right).graph_signature.user_inputs == ("x", "spare")
    with pytest.raises(UnsafeArchive, match=f"its SHA-256 is {right}, not {'0' * 64} as listed; restore the file"):
        load_program(path, sha256="0" * 64)


def test_what_is_checked_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, canary = written(tmp_path, forge.honest_bytes()), tmp_path / "canary"
    evil = forge.packed(forge.edited(forge.MODEL, lambda model: forge.write_file(forge.graph_of(model), canary)))
    read = loading._read

    def read_then_swap(place: Path) -> bytes:
        data = read(place)
        place.write_bytes(evil)
        return data

    monkeypatch.setattr(loading, "_read", read_then_swap)
    load_program(path).module()(*forge.example())
    assert not canary.exists()
    with pytest.raises(UnsafeArchive, match="from_file"):
        load_program(path)


def test_extra_files_are_left_out(tmp_path: Path) -> None:
    data = forge.saved(forge.Victim().eval(), forge.example(), extra_files={"notes.txt": "hello"})
    assert "extra/notes.txt" in forge.unpacked(data)
    assert load_program(written(tmp_path, data)).graph_signature.user_inputs == ("x", "spare")


def test_a_file_past_the_limit_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "MAX_BYTES", 100)
    with pytest.raises(UnsafeArchive, match="more than the 100 bytes that are read"):
        load_program(written(tmp_path, forge.honest_bytes()))


def test_a_graph_past_the_limit_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_JSON_BYTES", 100)
    with pytest.raises(UnsafeArchive, match=r"models/model.json has \d+ bytes and at most 100 are read"):
        load_program(written(tmp_path, forge.honest_bytes()))


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_ENTRIES", 3)
    with pytest.raises(UnsafeArchive, match="entries and at most 3 are read"):
        load_program(written(tmp_path, forge.honest_bytes()))


@pytest.mark.parametrize("place", ["nowhere.pt2", "."])
def test_a_path_that_is_no_file_is_told_apart_from_an_attack(place: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFolder, match=r"cannot be read|is not a file"):
        load_program(tmp_path / place)


@pytest.mark.parametrize("seed", range(60))
def test_damage_anywhere_is_a_plain_refusal_or_harmless(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    data = bytearray(forge.honest_bytes())
    if seed % 3 == 0:
        del data[chance.randrange(len(data)) :]
    for _ in range(1 if seed % 2 else 40):
        if data:
            data[chance.randrange(len(data))] = chance.randrange(256)
    with suppress(ThinnetError):  # anything else would be a stack trace of zip's or torch's
        load_program(written(tmp_path, bytes(data)))
