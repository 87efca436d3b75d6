"""A bad value in any format is told by row and column, or left out and told of; other rows keep their numbers."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from numpy.typing import NDArray
from plain_engine import engine
from written import ROWS, TABLE, WRITERS, score, table

from service.errors import InvalidInput
from service.scoring import score_table
from service.scoring.engine import Answers


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
