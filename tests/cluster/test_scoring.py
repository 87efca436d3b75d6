"""Scoring with Ray gives what a run in this process gives, whatever dies or stops on the way."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from served import save_models
from torch import nn

from service import Predictor
from service.cluster import scoring
from service.cluster.parcel import packed, unpacked
from service.cluster.scoring import RayRun
from service.cluster.tasks import Answered, Reading, Scorer, items_of
from service.errors import InvalidInput, InvalidQuantity
from service.folder import read_card
from service.scoring import answering
from service.scoring.engine import Parameters
from service.scoring.local import open_folder
from service.scoring.progress import SILENT, Silence, Watch
from service.scoring.source import open_source
from service.scoring.table import OnError, Summary, score_table
from service.scoring.tally import Tally

DIABETES = Path(__file__).parents[2] / "models" / "diabetes"
ROWS = 20_000  # of five blocks
ASKED = Parameters(passes=8, scope="row", seed=7)


class Once(Silence):
    """Does something when the first answers are there."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act, self._is_done = act, False

    def advance(self, rows: int, tally: Tally) -> None:
        if not self._is_done:
            self._is_done = True
            self._act()


@pytest.fixture(scope="module")
def patients() -> pa.Table:
    (spec,) = read_card(DIABETES).inputs
    drawn = np.random.default_rng(3).standard_normal((ROWS, len(spec.features)))
    columns = dict(zip(spec.features, (drawn * spec.std + spec.mean).T, strict=True))
    return pa.table({"id": [f"p{row}" for row in range(ROWS)], **columns})


@pytest.fixture(scope="module")
def expected(patients: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    folder = tmp_path_factory.mktemp("here")
    pq.write_table(patients, folder / "in.parquet")
    score_table(folder / "in.parquet", folder / "out.parquet", open_folder(DIABETES), ASKED)
    return pq.read_table(folder / "out.parquet")


class RunInThisProcess(RayRun):
    """A run without Ray: the same tasks one after another, and the same actor for all."""

    def answered(self, readings: Sequence[Reading]) -> Iterator[Answered]:
        actor = Scorer(*self._scorer)
        for reading in readings:
            for table in reading():
                yield from items_of(actor(table))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "_TASK_BLOCKS", 1)
    monkeypatch.setattr(answering, "PART_ROWS", 4096)


def scored(
    source: Path,
    target: Path,
    *,
    kind: type[RayRun] = RunInThisProcess,
    asked: Parameters = ASKED,
    watch: Watch = SILENT,
    on_error: OnError = "fail",
) -> Summary:
    run = kind(DIABETES, "cpu", threads=1)
    return score_table(
        source, target, run.open_engine, asked, watch=watch, on_error=on_error, open_table=run.open_table
    )


def assert_equal(target: Path, expected: pa.Table) -> None:
    found = pq.read_table(target)
    assert found.column_names == expected.column_names
    assert found["id"].equals(expected["id"])
    for name in found.column_names[1:]:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5)


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it is gone, or about to be
        return ""


def kill_an_actor() -> None:
    actors = [each for each in psutil.Process().children(recursive=True) if "MapWorker" in title(each)]
    assert actors
    actors[0].kill()


def kill_every_process_that_works() -> None:
    """Kill the actors, and the tasks that read."""
    for each in psutil.Process().children(recursive=True):
        if any(what in title(each) for what in ("MapWorker", "ReadBlocks")):
            each.kill()


@pytest.mark.parametrize("is_read_from_its_middle", [True, False], ids=["parquet", "csv"])
def test_rows_are_answered_as_in_this_process(
    is_read_from_its_middle: bool, patients: pa.Table, expected: pa.Table, tmp_path: Path
) -> None:
    source = tmp_path / ("in.parquet" if is_read_from_its_middle else "in.csv")
    if is_read_from_its_middle:
        pq.write_table(patients, source, row_group_size=3000)
    else:
        pyarrow.csv.write_csv(patients, source)
    summary = scored(source, tmp_path / "out.parquet")
    assert (summary.rows, summary.run["engine"], summary.run["seed"]) == (ROWS, "ray", 7)
    assert_equal(tmp_path / "out.parquet", expected)


@pytest.mark.parametrize("kill", [kill_an_actor, pytest.param(kill_every_process_that_works, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("ray_address")
def test_processes_that_are_killed_lose_and_double_no_row(
    kill: Callable[[], None], patients: pa.Table, expected: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(patients, tmp_path / "in.parquet")
    scored(tmp_path / "in.parquet", tmp_path / "out.parquet", kind=RayRun, watch=Once(kill))
    assert_equal(tmp_path / "out.parquet", expected)


def test_a_run_that_was_stopped_goes_on_with_what_is_missing(
    patients: pa.Table, expected: pa.Table, tmp_path: Path
) -> None:
    pq.write_table(patients, tmp_path / "in.parquet")

    class Stopping(Silence):
        def advance(self, rows: int, tally: Tally) -> None:
            if list(tmp_path.glob(".*.parts/000001.arrow")):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        scored(tmp_path / "in.parquet", tmp_path / "out.parquet", watch=Stopping())
    summary = scored(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert summary.found_done >= 2 * 4096
    assert_equal(tmp_path / "out.parquet", expected)


def test_a_row_at_fault_is_named_or_left_out_as_in_this_process(patients: pa.Table, tmp_path: Path) -> None:
    name = patients.column_names[3]
    cells = patients[name].to_pylist()
    cells[9001] = None
    pq.write_table(patients.set_column(3, name, pa.array(cells)), tmp_path / "in.parquet")
    with pytest.raises(InvalidInput, match=rf"in\.parquet, row 9001, column '{name}' is null"):
        scored(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert not (tmp_path / "out.parquet").exists()
    summary = scored(tmp_path / "in.parquet", tmp_path / "out.parquet", on_error="skip")
    assert (summary.rows, summary.left_out) == (ROWS - 1, 1)


def test_a_fault_of_the_question_is_told_as_it_is(patients: pa.Table, tmp_path: Path) -> None:
    pq.write_table(patients, tmp_path / "in.parquet")
    with pytest.raises(InvalidQuantity, match="no-such"):
        scored(tmp_path / "in.parquet", tmp_path / "out.csv", asked=Parameters(quantities=["no-such"]))


class Centred(nn.Module):
    """Its rows see one another."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x - x.mean(0), 0.5, self.training)


def test_rows_that_see_one_another_do_not_see_those_at_fault(tmp_path: Path) -> None:
    Predictor.capture(Centred().eval(), torch.randn(4, 2)).save(tmp_path / "centred")
    source, folder = tmp_path / "in.csv", tmp_path / "centred"
    source.write_text("a,b\n1,2\n,5\n3,4\n")
    asked, run = Parameters(passes=8), RunInThisProcess(folder, "cpu", threads=1)
    score_table(source, tmp_path / "here.csv", open_folder(folder), asked, on_error="skip")
    score_table(source, tmp_path / "ray.csv", run.open_engine, asked, on_error="skip", open_table=run.open_table)
    assert (tmp_path / "ray.csv").read_text() == (tmp_path / "here.csv").read_text()
    assert len((tmp_path / "ray.csv").read_text().splitlines()) == 3


def test_several_inputs_are_answered_as_in_this_process(tmp_path: Path) -> None:
    folder, source = save_models(tmp_path / "models") / "two", tmp_path / "in.csv"
    source.write_text("tokens.0,tokens.1,tokens.2,tokens.3,tokens.4,features.a,features.b\n1,2,3,4,5,0.5,-1\n")
    run = RunInThisProcess(folder, "cpu", threads=1)
    score_table(source, tmp_path / "here.csv", open_folder(folder), ASKED)
    score_table(source, tmp_path / "ray.csv", run.open_engine, ASKED, open_table=run.open_table)
    assert (tmp_path / "ray.csv").read_text() == (tmp_path / "here.csv").read_text()


def test_an_actor_needs_no_folder_of_models(tmp_path: Path) -> None:
    parcel = packed(read_card(DIABETES).program)
    folder = unpacked(parcel, tmp_path)
    assert folder.name == "diabetes"
    assert read_card(folder) == replace(read_card(DIABETES), program=folder / "1" / "program.pt2")


@pytest.mark.parametrize("ending", ["parquet", "arrow", "npy"])
def test_a_table_that_is_read_from_its_middle_is_the_rest_of_it(
    ending: str, patients: pa.Table, tmp_path: Path
) -> None:
    inputs, source = read_card(DIABETES).inputs, tmp_path / f"in.{ending}"
    if ending == "parquet":
        pq.write_table(patients, source, row_group_size=3000)
    elif ending == "arrow":
        pyarrow.feather.write_feather(patients, source, chunksize=3000)
    else:
        np.save(source, np.stack([patients[name] for name in inputs[0].features], 1))
    table = open_source(source, inputs)
    assert table.is_seekable
    whole = [*table.blocks(1000)]
    for first in (0, 2000, 3000, 7000, 19_000):
        for block, expected in zip(table.blocks(1000, first), whole[first // 1000 :], strict=True):
            assert block.first_row == expected.first_row
            assert block.keys.equals(expected.keys)
            np.testing.assert_array_equal(block.rows, expected.rows)
