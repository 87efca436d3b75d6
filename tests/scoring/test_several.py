"""A model with several inputs is scored from a table with their features side by side, wherever it runs."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from served import listening, save_models

from service import Predictor
from service.api import create_app
from service.errors import InvalidInput
from service.repository import Repository
from service.scoring import Parameters, score_table
from service.scoring.local import open_folder
from service.scoring.remote import open_server
from service.scoring.several import by_input, side_by_side
from service.scoring.source import open_source
from service.settings import Settings
from service.signature import Input

ROWS, ASKED = 50, Parameters(passes=8, scope="row")
MIXED = (Input("tokens", "int64", (2,)), Input("features", "float32", (2,), ("a", "b")), Input("one", "float32", ()))
HEADER = "tokens.0,tokens.1,features.a,features.b,one"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    with listening(create_app(Settings(models=folder), Repository(folder))) as found:
        yield found


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    return {"tokens": draws.integers(0, 7, (ROWS, 5)), "features": draws.normal(size=(ROWS, 2)).astype(np.float32)}


@pytest.fixture(scope="module")
def table(given: dict[str, np.ndarray]) -> pa.Table:
    tokens = {f"tokens.{index}": given["tokens"][:, index] for index in range(5)}
    features = {f"features.{name}": given["features"][:, index] for index, name in enumerate("ab")}
    return pa.table({"id": range(ROWS), **features, **tokens})


def write_lines(table: pa.Table, place: Path) -> None:
    place.write_text("".join(f"{json.dumps(row)}\n" for row in table.to_pylist()))


WRITERS: dict[str, Callable[[pa.Table, Path], object]] = {
    "csv": pyarrow.csv.write_csv,
    "parquet": pq.write_table,
    "feather": pyarrow.feather.write_feather,
    "jsonl": write_lines,
}


def assert_expected(found: pa.Table, given: dict[str, np.ndarray], folder: Path) -> None:
    wanted = Predictor.load(folder / "two").predict(given, passes=8, scope="row")
    for index, label in enumerate(("red", "green", "blue")):
        np.testing.assert_allclose(found[f"classes.mean_{label}"], wanted.mean["classes"][:, index], rtol=1e-5)
    np.testing.assert_allclose(found["measure.variance"], wanted.variance["measure"][:, 0], rtol=1e-5)
    assert found["id"].to_pylist() == [*range(ROWS)]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_table_with_the_features_side_by_side_is_scored(
    ending: str, table: pa.Table, given: dict[str, np.ndarray], folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / f"in.{ending}"
    WRITERS[ending](table, source)
    score_table(source, tmp_path / "out.parquet", open_folder(folder / "two"), ASKED)
    found = pq.read_table(tmp_path / "out.parquet")
    assert_expected(found.set_column(0, "id", found["id"].cast(pa.int64())), given, folder)


def test_a_server_answers_the_same(
    table: pa.Table, given: dict[str, np.ndarray], address: str, folder: Path, tmp_path: Path
) -> None:
    pq.write_table(table, tmp_path / "in.parquet")
    score_table(tmp_path / "in.parquet", tmp_path / "out.parquet", open_server(address, "two"), ASKED)
    assert_expected(pq.read_table(tmp_path / "out.parquet"), given, folder)


def test_each_number_is_held_to_the_type_of_its_input(tmp_path: Path) -> None:
    rows = ["1,2,0.1,0.2,5", "1,2.5,0.1,0.2,5", "1,2,0.1,1e60,5", "1,2,x,0.2,5"]
    (tmp_path / "in.csv").write_text("\n".join([HEADER, *rows]) + "\n")
    (block,) = open_source(tmp_path / "in.csv", MIXED).blocks(10)

    assert [(fault.row, fault.column) for fault in block.faults] == [
        (1, "tokens.1"),
        (2, "features.b"),
        (3, "features.a"),
    ]
    assert "is 2.5; the model takes whole numbers (int64)" in str(block.faults[0])
    assert "row 2, column 'features.b' is 1e+60, outside of float32" in str(block.faults[1])
    assert not block.rows[1:].any()
    found = by_input(MIXED, block.rows)
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == {
        "tokens": ("int64", (4, 2)),
        "features": ("float32", (4, 2)),
        "one": ("float32", (4,)),
    }
    np.testing.assert_array_equal(found["tokens"][0], [1, 2])
    np.testing.assert_array_equal(found["one"], [5, 0, 0, 0])


def test_inputs_of_one_type_keep_it() -> None:
    whole = Input("x", "int64", (1,)), Input("y", "int64", (3,))
    assert side_by_side(whole).dtype == "int64"
    assert side_by_side(whole).features == ("x.0", "y.0", "y.1", "y.2")
    assert side_by_side(MIXED).dtype == "float64"


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("in.csv", "tokens.0,tokens.1,a,b,one\n1,2,3,4,5\n", "missing columns: features.a, features.b"),
        ("in.json", '{"tokens": [[1, 2]], "features": [[1, 2]], "one": [1]}', "in.json has no columns with names"),
    ],
)
def test_a_table_that_does_not_name_the_inputs_is_refused(name: str, content: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidInput, match=what):
        open_source(tmp_path / name, MIXED)
