"""A model folder is read as it was written; what is missing or altered is refused, and nothing is half written."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, ExportedProgram, export

from service.datasheet import Datasheet
from service.errors import InvalidModelFolder, ThinnetError, VersionNotFound
from service.folder import MANIFEST, MAX_TEXT_BYTES, PROGRAM, SHEET, find_versions, model_name, read_card, write_folder
from service.signature import Input, Output

SHEET_DATA = Datasheet((Input("x", shape=(3,)),), (Output("y", shape=(1,)),), "A test.", 20, 7, score={"rmse": 0.5})


@pytest.fixture(scope="module")
def program() -> ExportedProgram:
    return export(nn.Linear(3, 1), (torch.randn(2, 3),), dynamic_shapes=({0: Dim("batch")},))


@pytest.fixture
def folder(tmp_path: Path, program: ExportedProgram) -> Path:
    write_folder(tmp_path / "digits", program, SHEET_DATA)
    return tmp_path / "digits"


def hidden(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir() if entry.name.startswith(".")]


def test_a_folder_is_read_as_it_was_written(folder: Path) -> None:
    card = read_card(folder)
    told = Datasheet(card.inputs, card.outputs, card.description, card.passes, card.seed, card.variant, card.score)

    assert told == SHEET_DATA
    assert (card.name, card.version, card.versions) == ("digits", 1, (1,))
    assert card.program == folder / "1" / PROGRAM
    assert len(card.sha256) == 64
    assert not hidden(folder)


def test_versions_are_added_and_the_highest_is_read(folder: Path, program: ExportedProgram) -> None:
    assert write_folder(folder, program, SHEET_DATA).name == "2"
    assert write_folder(folder, program, SHEET_DATA, 11).name == "11"

    assert find_versions(folder) == (1, 2, 11)
    assert read_card(folder).version == 11
    assert read_card(folder, 2).version == read_card(folder, "2").version == 2


def test_a_version_keeps_what_its_own_sheet_says(folder: Path, program: ExportedProgram) -> None:
    other = Datasheet(SHEET_DATA.inputs, SHEET_DATA.outputs, "Another.")
    write_folder(folder, program, SHEET_DATA)
    write_folder(folder, program, other)

    assert [read_card(folder, version).description for version in (1, 2, 3)] == ["A test.", "A test.", "Another."]
    assert [(folder / str(version) / SHEET).exists() for version in (2, 3)] == [False, True]


def test_a_version_is_never_written_over(folder: Path, program: ExportedProgram) -> None:
    before = (folder / "1" / PROGRAM).read_bytes()
    with pytest.raises(InvalidModelFolder, match="cannot be written: it exists or is no version"):
        write_folder(folder, program, SHEET_DATA, 1)

    assert (folder / "1" / PROGRAM).read_bytes() == before


@pytest.mark.parametrize("version", [0, -1, 10**9])
def test_a_number_that_is_no_version_is_not_written(folder: Path, program: ExportedProgram, version: int) -> None:
    with pytest.raises(InvalidModelFolder, match="it exists or is no version; give a new positive number"):
        write_folder(folder, program, SHEET_DATA, version)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, program: ExportedProgram) -> None:
    wrong = Datasheet(SHEET_DATA.inputs, SHEET_DATA.outputs, passes=1)
    with pytest.raises(InvalidModelFolder, match="passes = 1 is out of range"):
        write_folder(tmp_path / "digits", program, wrong)
    with pytest.raises(Exception, match="ExportedProgram"):
        write_folder(tmp_path / "digits", "no program", SHEET_DATA)  # type: ignore[arg-type] # that is the test

    assert not (tmp_path / "digits").exists()


@pytest.mark.parametrize("name", [".hidden", "a b", "ü", "x" * 65])
def test_a_folder_whose_name_no_request_could_carry_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidModelFolder, match="is not a model's name; rename the folder: a letter or digit"):
        model_name(tmp_path / name)


@pytest.mark.parametrize("version", [2, "3", "01", "x", "1/../1", "", 10**30])
def test_a_version_that_is_not_there_is_not_found(folder: Path, version: int | str) -> None:
    with pytest.raises(VersionNotFound, match=r"the model 'digits' has no version '.*'; it has 1$"):
        read_card(folder, version)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFolder, match="there is no such directory; check the path"):
        read_card(tmp_path / "none")


def test_a_folder_without_a_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    with pytest.raises(InvalidModelFolder, match=r"digits has no version; add .*program.pt2 with"):
        read_card(tmp_path / "digits")


def test_a_version_with_a_leading_zero_is_refused(folder: Path) -> None:
    (folder / "1").rename(folder / "01")
    with pytest.raises(InvalidModelFolder, match="01 is not a version; rename it"):
        read_card(folder)


def test_a_version_that_is_a_file_or_a_link_is_refused(folder: Path) -> None:
    (folder / "2").write_text("")
    with pytest.raises(InvalidModelFolder, match="2 is a link or a file"):
        read_card(folder)
    (folder / "2").unlink()
    (folder / "2").symlink_to(folder / "1")
    with pytest.raises(InvalidModelFolder, match="2 is a link or a file"):
        read_card(folder)


@pytest.mark.parametrize("name", [PROGRAM, MANIFEST])
def test_a_file_of_a_version_that_is_a_link_or_missing_is_refused(folder: Path, name: str) -> None:
    (folder / "1" / name).rename(folder / "elsewhere")
    with pytest.raises(InvalidModelFolder, match=f"{name} cannot be read: No such file"):
        read_card(folder)
    (folder / "1" / name).symlink_to(folder / "elsewhere")
    with pytest.raises(InvalidModelFolder, match=f"{name} is a link or a directory; put the file itself there"):
        read_card(folder)


def test_a_sheet_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / SHEET).rename(folder / "elsewhere")
    (folder / SHEET).symlink_to(folder / "elsewhere")
    with pytest.raises(InvalidModelFolder, match=r"model.toml is a link or a directory"):
        read_card(folder)


def test_a_version_may_not_have_a_sheet_that_its_manifest_does_not_tell(folder: Path) -> None:
    (folder / "1" / SHEET).write_bytes((folder / SHEET).read_bytes())
    with pytest.raises(InvalidModelFolder, match=r"model.toml is not what .*manifest.json says; restore it"):
        read_card(folder)


def test_a_program_that_was_cut_is_refused(folder: Path) -> None:
    with (folder / "1" / PROGRAM).open("ab") as file:
        file.truncate(100)
    with pytest.raises(InvalidModelFolder, match=r"program.pt2 has 100 bytes and manifest.json says .*; it was cut"):
        read_card(folder)


def test_a_sheet_past_the_limit_is_refused_unread(folder: Path) -> None:
    os.truncate(folder / SHEET, MAX_TEXT_BYTES + 1)
    with pytest.raises(InvalidModelFolder, match=f"has {MAX_TEXT_BYTES + 1} bytes and at most {MAX_TEXT_BYTES} are"):
        read_card(folder)


ENTRY = {"sha256": "0" * 64, "bytes": 1}
MANIFESTS: dict[str, object] = {
    "is not {": [],
    r"is not .*save the model again": {"files": {PROGRAM: 1}},
    "has no checksum of program.pt2": {"files": {}},
    "the sha256 of program.pt2 is not 64 hexadecimal digits": {"files": {PROGRAM: ENTRY | {"sha256": "0"}}},
    "lists '../1/program.pt2', which is not a file of this version": {
        "files": {"../1/program.pt2": ENTRY, PROGRAM: ENTRY}
    },
    "and manifest.json says None": {"files": {PROGRAM: ENTRY | {"bytes": None}}},
    "other.json cannot be read": {"files": {"other.json": ENTRY, PROGRAM: ENTRY}},
}


@pytest.mark.parametrize("message", MANIFESTS)
def test_a_manifest_that_is_wrong_is_refused(folder: Path, message: str) -> None:
    (folder / "1" / MANIFEST).write_text(json.dumps(MANIFESTS[message]))
    with pytest.raises(InvalidModelFolder, match=message):
        read_card(folder)


def test_a_manifest_that_is_no_json_is_refused(folder: Path) -> None:
    for content in (b"\xff", b"{", b"[" * 100_000):
        (folder / "1" / MANIFEST).write_bytes(content)
        with pytest.raises(InvalidModelFolder, match=r"manifest.json is not .*; save the model again"):
            read_card(folder)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_manifest_is_read_or_refused(folder: Path, content: bytes) -> None:
    (folder / "1" / MANIFEST).write_bytes(content)
    with pytest.raises(ThinnetError, match=r"manifest.json"):
        read_card(folder)


def test_other_entries_in_the_folder_are_left_alone(folder: Path) -> None:
    (folder / "train.py").write_text("raise SystemExit")
    (folder / "notes").mkdir()
    (folder / "1" / "calibration.json").write_text("{}")

    assert read_card(folder).versions == (1,)


def test_two_writers_of_one_version_do_not_mix(
    folder: Path, program: ExportedProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    save: Callable[..., None] = torch.export.save

    def slower(saved: ExportedProgram, path: Path) -> None:
        save(saved, path)
        (folder / "2").mkdir()
        (folder / "2" / "theirs").write_text("")

    monkeypatch.setattr(torch.export, "save", slower)
    with pytest.raises(InvalidModelFolder, match="was written by someone else meanwhile; take another version"):
        write_folder(folder, program, SHEET_DATA)

    assert [entry.name for entry in (folder / "2").iterdir()] == ["theirs"]
    assert not hidden(folder)
