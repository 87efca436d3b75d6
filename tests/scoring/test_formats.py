"""Every format gives the same rows and takes the same answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from pyarrow import csv, feather
from written import ROWS, TABLE, WRITERS, score, table

from service.errors import InvalidInput
from service.scoring.engine import Answers
from service.scoring.source import open_source
from service.signature import Input, Output

IMAGE = Input("image", shape=(2, 3))


@pytest.fixture(params=WRITERS)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    WRITERS[request.param](table(), path)
    return path


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
    with pytest.raises(InvalidInput, match=r"out.npy: a .npy file holds numbers, and id is text; name a .parquet file"):
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


KEYS = {
    "text with holes": (pa.array(["a", None, "c"]), ["a", "", "c"]),
    "categories": (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
    "days": (pa.array([0, 1, 2], pa.date32()), ["1970-01-01", "1970-01-02", "1970-01-03"]),
    "decimals": (pa.array([1, 2, 3]).cast(pa.decimal128(20, 1)), ["1.0", "2.0", "3.0"]),
    "whole numbers with holes": (pa.array([1, None, 3]), ["1", "", "3"]),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_any_type_are_written(name: str, tmp_path: Path) -> None:
    keys, texts = KEYS[name]
    pq.write_table(pa.table({"id": keys, "age": [1.0] * 3, "size": [2.0] * 3}), tmp_path / "in.parquet")
    for output in ("out.csv", "out.jsonl", "out.parquet"):
        score(tmp_path / "in.parquet", output)

    assert [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()[1:]] == texts
    told = [json.loads(line)["id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [str(key) if key is not None else "" for key in told] == texts
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == keys.to_pylist()


def test_categories_may_differ_from_block_to_block(tmp_path: Path) -> None:
    hundreds = np.arange(ROWS).reshape(7, 100)
    keys = pa.chunked_array([pa.array([f"r{row}" for row in part]).dictionary_encode() for part in hundreds])
    pq.write_table(table(id=keys), tmp_path / "in.parquet", row_group_size=100)
    score(tmp_path / "in.parquet", block_rows=64)

    assert (tmp_path / "out.csv").read_text().splitlines()[-1].startswith("r699,")


def test_a_key_that_is_a_list_is_refused(tmp_path: Path) -> None:
    pq.write_table(table(id=pa.array([[1]] * ROWS)), tmp_path / "in.parquet")
    with pytest.raises(InvalidInput, match=r"column 'id' holds list.* which tells no rows apart; convert it"):
        score(tmp_path / "in.parquet")


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
