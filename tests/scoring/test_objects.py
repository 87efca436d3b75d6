"""A table and a result may be in an object store: fetched once, sent whole; `file://` stands for all of them."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import InvalidInput, NotWritten
from service.scoring.objects import place_here, staged, uri_of
from service.scoring.work_folder import place_of


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "store").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def store(tmp_path: Path, name: str) -> Path:
    return Path(f"file://{tmp_path}/store/{name}")


def test_a_uri_is_known_though_a_path_has_lost_its_slash() -> None:
    assert uri_of(Path("s3://bucket/a/rows.parquet")) == "s3://bucket/a/rows.parquet"
    assert uri_of(Path("file:///tmp/rows.csv")) == "file:///tmp/rows.csv"
    assert uri_of(Path("/tmp/rows.csv")) is None
    assert uri_of(Path("c:/rows.csv")) is None


def test_paths_stay_as_they_are(tmp_path: Path) -> None:
    with staged(tmp_path / "in.csv", tmp_path / "out.csv") as places:
        assert places == (tmp_path / "in.csv", tmp_path / "out.csv")
    assert not list(tmp_path.glob(".*"))


def test_a_table_is_fetched_and_a_result_sent_and_nothing_left(tmp_path: Path) -> None:
    (tmp_path / "store" / "in.csv").write_text("rows")
    with staged(store(tmp_path, "in.csv"), store(tmp_path, "out.csv")) as (rows, result):
        assert (rows.name, rows.read_text()) == ("in.csv", "rows")
        result.write_text("answers")
        Path(f"{result}.errors.jsonl").write_text("left out")
        assert not (tmp_path / "store" / "out.csv").exists()
    assert (tmp_path / "store" / "out.csv").read_text() == "answers"
    assert (tmp_path / "store" / "out.csv.errors.jsonl").read_text() == "left out"
    assert not list(Path().iterdir())


def test_a_folder_is_fetched_with_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "store" / "rows"
    folder.mkdir()
    for name in ("1.parquet", "2.parquet"):
        (folder / name).write_text(name)
    with staged(store(tmp_path, "rows"), Path("out.csv")) as (rows, _):
        assert sorted(each.name for each in rows.iterdir()) == ["1.parquet", "2.parquet"]


def interrupted(source: Path, output: Path, act: Callable[[Path], object]) -> None:
    """Do something with the table, with a run half done, and be interrupted."""
    with suppress(KeyboardInterrupt), staged(source, output) as (rows, result):
        place_of(result).mkdir(exist_ok=True)
        act(rows)
        raise KeyboardInterrupt


def test_a_run_that_ended_early_keeps_what_it_has_and_fetches_what_changed(tmp_path: Path) -> None:
    given = tmp_path / "store" / "in.csv"
    given.write_text("rows")
    source, output, seen = store(tmp_path, "in.csv"), store(tmp_path, "out.csv"), []

    def mark(rows: Path) -> None:
        rows.write_text("mine")  # of the same size
        os.utime(rows, ns=(given.stat().st_mtime_ns,) * 2)

    interrupted(source, output, mark)
    assert place_of(place_here(output)).exists()
    interrupted(source, output, lambda rows: seen.append(rows.read_text()))
    given.write_text("other")
    interrupted(source, output, lambda rows: seen.append(rows.read_text()))
    assert seen == ["mine", "other"], "it is fetched again where it has changed, and only there"


def test_a_run_that_has_done_nothing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"), staged(store(tmp_path, "no.csv"), store(tmp_path, "o")):
        pass
    assert not list(Path().iterdir())


def test_what_is_not_there_or_cannot_be_written_is_named(tmp_path: Path) -> None:
    missing = pytest.raises(InvalidInput, match=r"store/no\.csv cannot be read: there is no such object; check")
    with missing, staged(store(tmp_path, "no.csv"), Path("out.csv")):
        pass
    (tmp_path / "store" / "in.csv").write_text("rows")
    refused = pytest.raises(NotWritten, match=r"nowhere/out\.csv cannot be written \(the result is kept at .*\): ")
    with refused, staged(tmp_path / "store" / "in.csv", store(tmp_path, "nowhere/out.csv")) as (_, result):
        result.write_text("answers")
    assert result.read_text() == "answers"
