"""Every format gives the same rows and takes the same answers, and a bad value in any is told by row and column."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from plain_engine import engine
from pyarrow import csv, feather

from service.errors import InvalidInput
from service.scoring import Summary, score_table
from service.scoring.engine import Answers
from service.scoring.source import open_source
from service.signature import Input, Output

TABLE = Input("x", shape=(2,), features=("age", "size"))
IMAGE = Input("image", shape=(2, 3))
ROWS = 700


def table(**changed: Any) -> pa.Table:
    """Seven hundred rows, their columns in an order of their own."""
    rows = np.arange(ROWS)
    columns = {"size": rows + 0.25, "id": pa.array([f"r{row}" for row in rows]), "age": rows / 8}
    return pa.table(columns | changed)


def write_json_lines(content: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in content.to_pylist()))


def write_gzipped(content: pa.Table, path: Path) -> None:
    with gzip.open(path, "wb") as file:
        csv.write_csv(content, file)


def write_stream(content: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, 100)


def write_folder(content: pa.Table, path: Path) -> None:
    path.mkdir()
    (path / "_SUCCESS").touch()
    for index in range(3):
        pq.write_table(content.slice(300 * index, 300), path / f"part-{index}.parquet", row_group_size=70)


WRITERS: dict[str, Callable[[pa.Table, Path], Any]] = {
    "in.csv": csv.write_csv,
    "in.csv.gz": write_gzipped,
    "in.parquet": pq.write_table,
    "folder": write_folder,
    "in.jsonl": write_json_lines,
    "in.arrow": lambda content, path: feather.write_feather(content, str(path)),
    "in.ipc": write_stream,
}


@pytest.fixture(params=WRITERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    WRITERS[request.param](table(), path)
    return path


def score(source: Path, name: str = "out.csv", spec: Input = TABLE, **more: Any) -> Summary:
    given = {key: more.pop(key) for key in ("answer", "outputs", "block_rows") if key in more}
    return score_table(source, source.parent / name, engine(spec, **given), **more)


def test_every_format_gives_the_same_rows(source: Path) -> None:
    blocks = [*open_source(source, [TABLE]).blocks(256)]
    rows = np.concatenate([block.rows for block in blocks])

    assert [len(block) for block in blocks] == [256, 256, 188]
    assert [block.first_row for block in blocks] == [0, 256, 512]
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, np.stack([np.arange(ROWS) / 8, np.arange(ROWS) + 0.25], 1))
    assert [key for block in blocks for key in block.keys.to_pylist()] == [f"r{row}" for row in range(ROWS)]


def test_every_format_can_be_read_from_any_row_on(source: Path) -> None:
    opened = open_source(source, [TABLE])
    whole = np.concatenate([block.rows for block in opened.blocks(50)])
    for first in (1, 69, 300, 650, ROWS):
        blocks = [*opened.blocks(50, first)]
        assert not blocks or blocks[0].first_row == first
        found = np.concatenate([block.rows for block in blocks]) if blocks else whole[:0]
        np.testing.assert_array_equal(found, whole[first:])


def test_a_count_is_what_it_says(source: Path) -> None:
    assert open_source(source, [TABLE]).count() in (ROWS, None)


READERS: dict[str, Callable[[Path], pa.Table]] = {
    "out.csv": csv.read_csv,
    "out.csv.gz": csv.read_csv,
    "out.parquet": pq.read_table,
    "out.jsonl": lambda path: pa.Table.from_pylist([json.loads(line) for line in path.read_text().splitlines()]),
    "out.arrow": lambda path: feather.read_table(str(path)),
}


@pytest.mark.parametrize("name", READERS)
def test_every_format_takes_the_answers(name: str, tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", name)
    found = READERS[name](tmp_path / name)

    assert found.column_names == ["id", "mean", "variance"]
    assert found["id"].to_pylist() == [f"r{row}" for row in range(ROWS)]
    np.testing.assert_allclose(found["mean"].to_numpy(), np.arange(ROWS) / 4, rtol=1e-6)
    np.testing.assert_array_equal(found["variance"].to_numpy(), np.arange(ROWS))


def test_numpy_takes_named_numbers_and_no_text(tmp_path: Path) -> None:
    pq.write_table(table().drop_columns("id"), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", "out.npy")
    found = np.load(tmp_path / "out.npy")

    assert found.dtype.names == ("row", "mean", "variance")
    np.testing.assert_array_equal(found["row"], np.arange(ROWS))
    np.testing.assert_allclose(found["mean"], np.arange(ROWS) / 4, rtol=1e-6)
    pq.write_table(table(), tmp_path / "named.parquet")
    with pytest.raises(InvalidInput, match=r"a .npy file holds numbers, and id is text; name a .parquet file"):
        score(tmp_path / "named.parquet", "out.npy")


def test_parquet_tells_what_the_run_was(tmp_path: Path) -> None:
    pq.write_table(table(), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", "out.parquet")
    told = json.loads(pq.read_schema(tmp_path / "out.parquet").metadata[b"thinnet"])

    assert (told["model"], told["version"], told["seed"]) == ("plain", 1, "default") or told["seed"] is not None
    assert {"thinnet", "engine", "scope"} <= told.keys()


def test_keys_keep_their_type(tmp_path: Path) -> None:
    pq.write_table(table(id=pa.array(range(ROWS), pa.int32())), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet", "out.parquet")

    assert pq.read_schema(tmp_path / "out.parquet").field("id").type == pa.int32()


@pytest.mark.parametrize("kind", ["float64", "uint8"])
def test_a_numpy_array_of_several_axes_is_rows(kind: str, tmp_path: Path) -> None:
    images = np.arange(30).reshape(5, 2, 3).astype(kind)
    np.save(tmp_path / "in.npy", images)
    (block,) = open_source(tmp_path / "in.npy", [IMAGE]).blocks(8)

    np.testing.assert_array_equal(block.rows, images)
    assert block.keys.to_pylist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["in.parquet", "in.jsonl"])
def test_lists_of_lists_under_the_inputs_name_are_rows(name: str, tmp_path: Path) -> None:
    images = np.arange(30).reshape(5, 2, 3) / 2
    WRITERS[name](pa.table({"id": list("abcde"), "image": images.tolist()}), tmp_path / name)
    (block,) = open_source(tmp_path / name, [IMAGE]).blocks(8)

    np.testing.assert_array_equal(block.rows, images)
    assert block.keys.to_pylist() == list("abcde")


def test_images_are_rows_named_by_their_files(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "images").mkdir()
    pixels = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    for name in ("b.png", "a.png"):
        pillow.fromarray(pixels + (name == "a.png")).save(tmp_path / "images" / name)
    (tmp_path / "images" / "c.png").write_bytes(b"no image")
    pillow.fromarray(pixels[:, :2]).save(tmp_path / "images" / "d.png")
    (block,) = open_source(tmp_path / "images", [IMAGE]).blocks(8)

    np.testing.assert_array_equal(block.rows[:2], [pixels + 1, pixels])
    assert block.keys.to_pylist() == ["a.png", "b.png", "c.png", "d.png"]
    assert [fault.row for fault in block.faults] == [2, 3]
    assert "cannot be read as an image" in block.faults[0].reason
    assert block.faults[1].reason == "has 2 x 2 pixels, the model takes 3 x 2"


def with_hole(value: Any) -> list[Any]:
    return [row / 8 if row != 300 else value for row in range(ROWS)]


BAD = {
    "in.csv": (with_hole(None), r"in.csv, line 302 \(row 300\), column 'age' is empty; fill it in"),
    "in.csv.gz": (with_hole(float("nan")), r"line 302 \(row 300\), column 'age' is 'nan'; give a finite number"),
    "in.parquet": (with_hole(None), r"in.parquet, row 300, column 'age' is null; fill it in, or leave the row out"),
    "folder": (
        with_hole(float("nan")),
        r"part-1.parquet, row 0 \(row 300 of all\), column 'age' is nan; give a finite number",
    ),
    "in.jsonl": (with_hole("old"), r"in.jsonl, line 301 \(row 300\), column 'age' is 'old', not a number"),
    "in.arrow": (with_hole(1e39), r"in.arrow, row 300, column 'age' is 1e\+39, outside of float32; give"),
    "in.ipc": (with_hole(float("inf")), r"in.ipc, row 300, column 'age' is inf; give a finite number"),
}


def write_bad(name: str, folder: Path) -> tuple[Path, str]:
    values, what = BAD[name]
    is_mixed = any(isinstance(value, str) for value in values)
    content = table() if is_mixed else table(age=pa.array(values, pa.float64()))
    WRITERS[name](content, folder / name)
    if is_mixed:
        lines = (folder / name).read_text().splitlines()
        lines[300] = lines[300].replace("37.5", '"old"')
        (folder / name).write_text("\n".join(lines))
    return folder / name, what


@pytest.mark.parametrize("name", BAD)
def test_a_bad_value_is_told_by_row_and_column_in_every_format(name: str, tmp_path: Path) -> None:
    source, what = write_bad(name, tmp_path)
    with pytest.raises(InvalidInput, match=what):
        score(source)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_can_be_left_out_and_told_of_and_the_others_keep_their_numbers(name: str, tmp_path: Path) -> None:
    source, what = write_bad(name, tmp_path)
    summary = score(source, on_error="record")
    rows = (tmp_path / "out.csv").read_text().splitlines()[1:]
    (told,) = [json.loads(line) for line in (tmp_path / "out.csv.errors.jsonl").read_text().splitlines()]

    assert (summary.rows, summary.left_out) == (ROWS - 1, 1)
    assert summary.errors == str(tmp_path / "out.csv.errors.jsonl")
    assert [row.split(",")[0] for row in rows] == [f"r{row}" for row in range(ROWS) if row != 300]
    assert [int(row.split(",")[2]) for row in rows] == [row for row in range(ROWS) if row != 300]
    assert (told["row"], told["column"]) == (300, "age")
    assert told["reason"] in what.replace("\\", "") or "age" in what


def test_bad_rows_can_be_skipped_and_are_counted_and_an_old_record_goes(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    source.write_text("age,size\n1,2\n,2\n3\n4,5\n")
    score(source, on_error="record")
    assert len((tmp_path / "out.csv.errors.jsonl").read_text().splitlines()) == 2
    source.write_text("age,size\n1,2\n")
    summary = score(source, on_error="record")

    assert (summary.rows, summary.left_out, summary.errors) == (1, 0, None)
    assert not (tmp_path / "out.csv.errors.jsonl").exists()


def test_a_network_that_couples_its_rows_never_sees_a_bad_one(tmp_path: Path) -> None:
    seen: list[int] = []

    def answer(rows: NDArray[Any], first_row: int) -> Answers:
        seen.append(len(rows))
        return {"output": {"mean": rows[:, 0], "variance": rows[:, 1]}}

    (tmp_path / "in.csv").write_text("age,size\n1,2\n,2\n3,4\n")
    opened = engine(TABLE, answer=answer, couples_rows=True)
    score_table(tmp_path / "in.csv", tmp_path / "out.csv", opened, on_error="skip")

    assert seen == [2]
    assert (tmp_path / "out.csv").read_text() == "row,mean,variance\n0,1,2\n2,3,4\n"


@pytest.mark.parametrize("ending", ["txt", "xlsx", ""])
def test_an_ending_that_is_not_known_is_refused_before_any_work(ending: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("age,size\n1,2\n")
    with pytest.raises(InvalidInput, match=r"ends in none of .csv, .csv.gz, .parquet"):
        score(tmp_path / "in.csv", f"out.{ending}")
    (tmp_path / f"in.{ending}").write_text("age,size\n1,2\n")
    with pytest.raises(InvalidInput, match=r"ends in none of .csv, .csv.gz, .parquet"):
        score(tmp_path / f"in.{ending}")


def test_text_is_quoted_where_it_must_be(tmp_path: Path) -> None:
    names = ["plain", "a,b", 'say "x"', "two\nlines", " wide ", "größe", ""]
    pq.write_table(pa.table({"id": names, "age": [1.0] * 7, "size": [2.0] * 7}), tmp_path / "in.parquet")
    score(tmp_path / "in.parquet")
    found = csv.read_csv(tmp_path / "out.csv", parse_options=csv.ParseOptions(newlines_in_values=True))

    assert found["id"].to_pylist() == names


def test_rows_are_counted_that_are_uncertain_or_no_numbers(tmp_path: Path) -> None:
    def answer(rows: NDArray[Any], first_row: int) -> Answers:
        variance = np.array([0.0, 1.0, 4.0, np.nan, 100.0])
        return {"a": {"mean": np.full(5, 2.0), "variance": variance, "variance_error": variance * np.nan}}

    np.save(tmp_path / "in.npy", np.zeros((5, 2)))
    summary = score(tmp_path / "in.npy", answer=answer, outputs=(Output("a"),), threshold=0.9)

    assert (summary.above, summary.unfinite, summary.passes) == (2, 1, 0)
    entropies = {"a": {"mean": np.ones((5, 2)), "variance": np.ones((5, 2)), "entropy": np.arange(5) / 4}}
    classes = (Output("a", labels=("no", "yes")),)
    assert score(tmp_path / "in.npy", answer=lambda *_: entropies, outputs=classes, threshold=0.5).above == 2
