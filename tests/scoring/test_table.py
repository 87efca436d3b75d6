"""A table is scored whole and in order, or not at all, and every cell that is wrong is named."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from plain_engine import Plain, doubled, engine
from torch import nn

from service import Predictor
from service.errors import BadRequest, InvalidInput, InvalidPlan, RemoteFault
from service.scoring import Parameters, Summary, score_table
from service.scoring.block import Block
from service.scoring.engine import Answers, Described
from service.scoring.local import open_predictor, score_locally
from service.signature import Input, Output, Task

Read = Callable[[Path], tuple[list[str], list[list[str]]]]
Answer = Mapping[str, Mapping[str, NDArray[Any]]]


def numbers(table: list[list[str]], names: list[str], *wanted: str) -> NDArray[np.float64]:
    return np.array([[float(row[names.index(name)]) for name in wanted] for row in table])


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def score(path: Path, spec: Input, answer: Any = doubled, **more: Any) -> Summary:
    return score_table(path, path.parent / "out.csv", engine(spec, answer=answer, **more))


@pytest.mark.parametrize("scope", ["pass", "row"])
def test_a_table_in_blocks_scores_as_one_call(
    scope: str, predictor: Predictor, people: Path, features_of: Any, read_table: Read, tmp_path: Path
) -> None:
    summary = score_locally(predictor, people, tmp_path / "out.csv", passes=20, seed=3, scope=scope)
    names, rows = read_table(tmp_path / "out.csv")
    expected = predictor.predict(features_of(people), passes=20, seed=3, scope=scope)
    assert isinstance(expected.mean, torch.Tensor)
    assert isinstance(expected.variance, torch.Tensor)

    assert summary.rows == 700
    assert [row[0] for row in rows] == [f"p{row}" for row in range(700)]
    np.testing.assert_allclose(numbers(rows, names, "mean_red", "mean_green", "mean_blue"), expected.mean, rtol=1e-5)
    found = numbers(rows, names, "variance_red", "variance_green", "variance_blue")
    np.testing.assert_allclose(found, expected.variance, rtol=1e-4, atol=1e-9)
    assert {row[names.index("label")] for row in rows} <= {"red", "green", "blue"}


def test_scopes_differ(predictor: Predictor, people: Path, tmp_path: Path) -> None:
    for scope in ("pass", "row"):
        score_locally(predictor, people, tmp_path / f"{scope}.csv", passes=5, scope=scope)

    assert (tmp_path / "pass.csv").read_text() != (tmp_path / "row.csv").read_text()


def test_the_header_names_every_quantity(predictor: Predictor, people: Path, read_table: Read, tmp_path: Path) -> None:
    score_locally(predictor, people, tmp_path / "out.csv", passes=5, quantities=["quantile_0.9"])
    names, _ = read_table(tmp_path / "out.csv")

    assert names == [
        "id", "mean_red", "mean_green", "mean_blue", "variance_red", "variance_green", "variance_blue", "label",
        "probability", "entropy", "expected_entropy", "mutual_information", "variation_ratio",
        "quantile_0.9_red", "quantile_0.9_green", "quantile_0.9_blue",
    ]  # fmt: skip


def test_a_fresh_seed_is_one_for_the_whole_table(
    predictor: Predictor, people: Path, read_table: Read, tmp_path: Path
) -> None:
    lines = people.read_text().splitlines()
    same = write(tmp_path / "same.csv", "\n".join([lines[0], *[lines[1]] * 600]))
    score_locally(predictor, same, tmp_path / "out.csv", passes=5, seed=None)
    names, rows = read_table(tmp_path / "out.csv")
    means = numbers(rows, names, "mean_red", "variance_red")

    np.testing.assert_allclose(means, np.broadcast_to(means[0], means.shape), rtol=1e-4)
    score_locally(predictor, same, tmp_path / "again.csv", passes=5, seed=None)
    assert (tmp_path / "again.csv").read_text() != (tmp_path / "out.csv").read_text()


class Centred(nn.Module):
    """A network that couples its rows."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(x) - x.mean(0, keepdim=True)


def test_a_network_that_couples_its_rows_gets_them_all_at_once(read_table: Read, tmp_path: Path) -> None:
    coupled = Predictor.capture(Centred(), torch.randn(2, 2))
    x = torch.randn(300, 2)
    lines = [f"{a!r},{b!r}" for a, b in x.tolist()]
    score_locally(coupled, write(tmp_path / "in.csv", "\n".join(["a,b", *lines])), tmp_path / "out.csv", passes=5)
    names, rows = read_table(tmp_path / "out.csv")

    np.testing.assert_allclose(numbers(rows, names, "mean_0", "mean_1"), coupled.predict(x, passes=5).mean, atol=1e-5)


def test_several_outputs_stand_under_their_names_and_single_elements_without_number(
    read_table: Read, tmp_path: Path
) -> None:
    def two(rows: NDArray[Any], first_row: int) -> Answer:
        return {
            "kind": {"mean": np.ones((len(rows), 2)), "label": np.ones(len(rows), dtype=np.int64)},
            "size": {"mean": np.ones((len(rows), 1)), "map": np.ones((len(rows), 1, 2))},
        }

    outputs = [Output("kind", Task.CLASSIFICATION, (2,), labels=("no", "yes")), Output("size", shape=(1,))]
    score(write(tmp_path / "in.csv", "a\n1\n"), Input("x", shape=(1,)), two, outputs=outputs)
    names, rows = read_table(tmp_path / "out.csv")

    assert names == ["row", "kind.mean_no", "kind.mean_yes", "kind.label", "size.mean", "size.map_0_0", "size.map_0_1"]
    assert rows == [["0", "1", "1", "yes", "1", "1", "1"]]


def test_columns_without_feature_names_are_taken_in_order_and_rows_are_counted(
    read_table: Read, tmp_path: Path
) -> None:
    score(write(tmp_path / "in.csv", "b,a\n1,5\n2.5,6\n"), Input("x", shape=(2,)))

    assert read_table(tmp_path / "out.csv") == (["row", "mean", "variance"], [["0", "2", "0"], ["1", "5", "1"]])


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,ID\r\n1,x\r\n2,y\r\n",
        '"a","ID"\n"1","x"\n" 2 ","y"\n\n\n',
        "ID,a\nx,1\ny,2e0",
    ],
)
def test_what_spreadsheets_write_is_read(text: str, read_table: Read, tmp_path: Path) -> None:
    score(write(tmp_path / "in.csv", text), Input("x", shape=(1,), features=("a",)))

    assert read_table(tmp_path / "out.csv") == (["ID", "mean", "variance"], [["x", "2", "0"], ["y", "4", "1"]])


def test_a_feature_called_id_is_a_feature(read_table: Read, tmp_path: Path) -> None:
    score(write(tmp_path / "in.csv", "id\n7\n"), Input("x", shape=(1,), features=("id",)))

    assert read_table(tmp_path / "out.csv")[1] == [["0", "14", "0"]]


def test_a_float_is_written_in_the_shortest_text_of_its_float32(read_table: Read, tmp_path: Path) -> None:
    score(write(tmp_path / "in.csv", "a\n0.05\n"), Input("x", shape=(1,)))

    assert read_table(tmp_path / "out.csv")[1][0][1] == "0.1"


FLOATS = Input("x", "float32", (2,), ("age", "size"))
BAD_CELLS = {
    "1,two": (FLOATS, r"in.csv, line 3 \(row 1\), column 'size' is 'two', not a number"),
    "1,": (FLOATS, r"line 3 \(row 1\), column 'size' is empty; fill it in"),
    " ,1": (FLOATS, r"line 3 \(row 1\), column 'age' is empty"),
    "nan,1": (FLOATS, r"line 3 \(row 1\), column 'age' is 'nan'; give a finite number"),
    "1,-inf": (FLOATS, r"column 'size' is '-inf'; give a finite number"),
    "1_0,1": (FLOATS, r"column 'age' is '1_0'; give a finite number"),
    "1,1e39": (FLOATS, r"column 'size' is '1e39', outside of float32; give -3.40282e\+38 to"),
    '1,"2,5"': (FLOATS, r"column 'size' is '2,5', not a number; give a finite number with a point"),
    "1": (FLOATS, r"line 3 \(row 1\) has 1 cells, the header has 2"),
    "1,2,3": (FLOATS, r"line 3 \(row 1\) has 3 cells, the header has 2"),
    "\n1,2": (FLOATS, r"line 3 is empty; take it out"),
    '1,"2': (FLOATS, r"line 3: unexpected end of data; correct the quotes"),
    "1,2.5": (Input("x", "int64", (2,)), r"column 'size' is '2.5'; the model takes whole numbers \(int64\)"),
    "1,300": (Input("x", "uint8", (2,)), r"column 'size' is '300', outside of uint8; give 0 to 255"),
    "1,2": (Input("x", "bool", (2,)), r"column 'size' is '2', outside of bool; give 0 to 1"),
    f"1,{'9' * 400}": (Input("x", "int64", (2,)), "column 'size' is '9999999999.*give a finite number"),
}


@pytest.mark.parametrize("line", BAD_CELLS)
def test_a_wrong_cell_is_told_by_line_and_column(line: str, tmp_path: Path) -> None:
    spec, what = BAD_CELLS[line]

    with pytest.raises(InvalidInput, match=what):
        score(write(tmp_path / "in.csv", f"age,size\n1,0\n{line}"), spec)
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("age\n1\n", "missing columns: size; the model takes age, size"),
        ("age,size,name\n1,2,3\n", "unknown columns: name; the model takes"),
        ("age,Size\n1,2\n", "missing columns: size, unknown columns: Size; did you mean 'size'"),
        ("age;size\n1;2\n", "separated by ';': save it with commas"),
        ("age,size,age\n1,2,3\n", "has the column 'age' 2 times"),
        (",age,size\n0,1,2\n", r"column 1 has no name; name it, or leave it out \(pandas: index=False\)"),
        ("", "is empty; give a header"),
        ("age,size\n", "has a header and no rows"),
    ],
)
def test_a_header_that_does_not_fit_is_told(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=what):
        score(write(tmp_path / "in.csv", text), FLOATS)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("1.5,2\n3,4\n", r"begins with numbers \(1.5, 2, …\); put a header above them"),
        ("id,a,b,c\nx,1,2,3\n", "has 3 columns besides id, the model takes 2 features"),
    ],
)
def test_a_nameless_table_that_does_not_fit_is_told(text: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=what):
        score(write(tmp_path / "in.csv", text), Input("x", shape=(2,)))


def test_columns_numbered_from_0_are_a_header(tmp_path: Path) -> None:
    assert score(write(tmp_path / "in.csv", "0,1\n5,6\n"), Input("x", shape=(2,))).rows == 1


def test_a_file_in_another_encoding_is_told(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("größe\n1\n".encode("latin-1"))

    with pytest.raises(InvalidInput, match=r"not UTF-8 .*save it as UTF-8"):
        score(tmp_path / "in.csv", Input("x", shape=(1,)))


@pytest.mark.parametrize(
    "inputs", [[Input("x", shape=(3, 4))], [Input("a", shape=(1,)), Input("b", shape=(2, 2))]], ids=["image", "two"]
)
def test_a_model_that_takes_no_table_is_refused(inputs: list[Input], tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"the model takes .* \[rows, "):
        score_table(write(tmp_path / "in.csv", "a\n1\n"), tmp_path / "out.csv", engine(*inputs))


@pytest.mark.parametrize(
    ("source", "target", "what"),
    [
        ("nowhere.csv", "out.csv", "nowhere.csv cannot be read: No such file"),
        ("in.csv", "in.csv", "is the file to be scored"),
        ("in.csv", ".", "is not an ordinary file"),
        ("in.csv", "nowhere/out.csv", "there is no directory .*nowhere; make it first"),
    ],
)
def test_files_that_cannot_be_read_or_written_are_told(source: str, target: str, what: str, tmp_path: Path) -> None:
    write(tmp_path / "in.csv", "a\n1\n")

    with pytest.raises(InvalidInput, match=what):
        score_table(tmp_path / source, tmp_path / target, engine(Input("x", shape=(1,))))
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]


def test_a_fault_in_a_late_block_leaves_the_old_result_and_no_trace(tmp_path: Path) -> None:
    def failing(rows: NDArray[Any], first_row: int) -> Answer:
        if first_row:
            raise RemoteFault("the server is gone")
        return doubled(rows, first_row)

    write(tmp_path / "out.csv", "old")
    with pytest.raises(RemoteFault, match=r"in.csv, rows 2 to 2: the server is gone"):
        score(write(tmp_path / "in.csv", "a\n1\n2\n3\n"), Input("x", shape=(1,)), failing, block_rows=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out.csv"]
    assert (tmp_path / "out.csv").read_text() == "old"


def test_an_answer_whose_columns_change_is_refused(tmp_path: Path) -> None:
    def changing(rows: NDArray[Any], first_row: int) -> Answer:
        return {"output": {f"mean{first_row}": rows}}

    with pytest.raises(RemoteFault, match="rows 1 to 1: the answer has other columns than before: mean0, mean1"):
        score(write(tmp_path / "in.csv", "a\n1\n2\n"), Input("x", shape=(1,)), changing, block_rows=1)


def test_an_answer_with_too_few_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RemoteFault, match=r"mean has the shape \(0,\), not a value for each row"):
        score(write(tmp_path / "in.csv", "a\n1\n"), Input("x", shape=(1,)), lambda *_: {"output": {"mean": np.ones(0)}})


def test_an_existing_result_is_replaced_with_the_rights_of_any_new_file(tmp_path: Path) -> None:
    write(tmp_path / "out.csv", "old").chmod(0o600)
    score(write(tmp_path / "in.csv", "a\n1\n"), Input("x", shape=(1,)))

    assert (tmp_path / "out.csv").read_text() == "row,mean,variance\n0,2,0\n"
    assert (tmp_path / "out.csv").stat().st_mode == (tmp_path / "in.csv").stat().st_mode


def test_a_plan_that_does_not_fit_is_told_as_predict_tells_it(
    predictor: Predictor, people: Path, tmp_path: Path
) -> None:
    with pytest.raises(InvalidPlan, match=r"^there is no variant 'bernouli'"):
        score_locally(predictor, people, tmp_path / "out.csv", variant="bernouli")
    with pytest.raises(BadRequest, match=r"^passes = 1 "):
        score_locally(predictor, people, tmp_path / "out.csv", passes=1)


def test_scoring_at_a_server_does_not_import_torch() -> None:
    code = "import sys; import service.scoring.remote; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_engine_that_leaves_rows_unanswered_is_refused(tmp_path: Path) -> None:
    class Lazy(Plain):
        def answers(self, blocks: Iterator[Block]) -> Iterator[Answers]:
            for block in list(blocks)[:1]:
                yield self.answer(block.rows, block.first_row)

    told = Described("plain", 1, "same", (Input("x", shape=(1,)),), ())
    lazy = Lazy(told, doubled, block_rows=2)
    with pytest.raises(RemoteFault, match="rows 2 to 2: no answer came"):
        score_table(write(tmp_path / "in.csv", "a\n1\n2\n3\n"), tmp_path / "out.csv", lambda *_: lazy)


def test_errors_of_variances_are_no_variances(predictor: Predictor, people: Path, tmp_path: Path) -> None:
    opened = open_predictor(predictor)
    summary = score_table(people, tmp_path / "out.csv", opened, Parameters(tolerance=0.1, passes=256), threshold=0.9)

    assert summary.unfinite == 0
    assert summary.above is not None
    assert 700 * 64 <= summary.passes <= 700 * 256
