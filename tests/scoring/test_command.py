"""`thinnet score` by hand: what is wrong is one line with a cure and an exit code, and nothing half done is left."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from service import Predictor
from service import score_command as command
from service.cli import main
from service.scoring import answering
from service.scoring.columns import answered_rows
from service.scoring.work_folder import place_of

ROOT = Path(__file__).parents[2]
GOOD = "age,height,weight\n40,170,70\n41,171,71\n"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def model(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models") / "people"
    predictor.save(place, description="for tests")
    return place


@pytest.fixture
def run(model: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(source: Path, output: Path, *more: object) -> tuple[int, str, str]:
        told = ["score", source, "--output", output, "--model", model, *more]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["thinnet", *map(str, told)])
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def truncated_parquet(path: Path) -> None:
    pq.write_table(pa.table({"age": [40.0] * 99, "height": [1.0] * 99, "weight": [2.0] * 99}), path)
    path.write_bytes(path.read_bytes()[:-50])


def broken_pages(path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(3, 5000))
    pq.write_table(pa.table(dict(zip(("age", "height", "weight"), rows, strict=True))), path)
    content = bytearray(path.read_bytes())
    content[2000:60000] = bytes(58000)
    path.write_bytes(bytes(content))


def truncated_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(GOOD.encode() * 1)[:-12])


def text(content: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content.encode(encoding))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut.parquet": (truncated_parquet, "cannot be read as Parquet"),
    "broken.parquet": (broken_pages, "cannot be read as Parquet"),
    "empty.parquet": (text(""), "cannot be read as Parquet"),
    "cut.csv.gz": (truncated_gzip, "is no whole gzip file"),
    "no.csv.gz": (text(GOOD), "is no whole gzip file"),
    "latin.csv": (lambda path: path.write_bytes(b"id," + GOOD.encode()[:18] + b"\n\xff,1,2,3\n"), "not UTF-8"),
    "mixed.csv": (lambda path: path.write_bytes(GOOD.encode() + "größe,1,2\n".encode("latin-1")), "not UTF-8"),
    "utf16.csv": (text(GOOD, "utf-16"), "not UTF-8"),
    "columns.csv": (text("age,height\n1,2\n"), "missing columns: weight"),
    "nan.csv": (text(GOOD + "nan,1,2\n"), r"line 4 (row 2), column 'age' is 'nan'; give a finite number"),
    "empty.csv": (text(""), "is empty; give a header and a row"),
    "header.csv": (text("age,height,weight\n"), "has a header and no rows"),
    "long.csv": (text(GOOD + "1" * 10_000_000 + ",1,2\n"), "line 4: field larger than field limit"),
    "ragged.csv": (text(GOOD + "1,2\n"), "line 4 (row 2) has 2 cells, the header has 3"),
    "quote.csv": (text(GOOD + '1,2,"3\n'), "correct the quotes there"),
    "binary.csv": (lambda path: path.write_bytes(bytes(range(256)) * 9), "error: "),
    "parquet.csv": (truncated_parquet, "it is a Parquet file: name it so"),
    "csv.parquet": (text(GOOD), "name it what it is"),
    "csv.arrow": (text(GOOD), "cannot be read as Arrow"),
    "csv.npy": (text(GOOD), "cannot be read as a NumPy array"),
    "csv.jsonl": (text(GOOD), "line 1 is not JSON"),
    "list.jsonl": (text("[1, 2, 3]\n"), "line 1 is no object; write {…}"),
    "later.jsonl": (text('{"age": 1, "height": 2, "weight": 3}\n{"age": 1}\n'), "'height' is missing"),
    "deep.jsonl": (text("[" * 100_000), "line 1 is not JSON"),
    "rows.xlsx": (text(GOOD), "ends in none of .csv"),
    "nowhere/rows.csv": (lambda path: None, "No such file or directory; check the path"),
    "a folder": (lambda path: path.mkdir(), "is empty; a folder holds nothing but Parquet files"),
    "text.parquet": (
        lambda path: pq.write_table(pa.table({"age": ["x"], "height": [1.0], "weight": [1.0]}), path),
        "column 'age' holds string, not numbers; convert it",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_scored_is_one_line_and_leaves_nothing(name: str, run: Run, tmp_path: Path) -> None:
    make, what = HOSTILE[name]
    make(tmp_path / name)
    before = {*tmp_path.iterdir()}
    code, out, err = run(tmp_path / name, tmp_path / "out.csv")

    assert (code, out) == (1, "")
    assert what in err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert len(err) < 600
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["one.csv", "with a space\nand a line.csv", "-dash.csv", "größe.CSV"])
def test_odd_names_and_single_rows_are_scored(name: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / name).write_text("age,height,weight\n40,170,70\n")
    code, out, err = run(tmp_path / name, tmp_path / f"out {name}")

    assert (code, err) == (0, "")
    assert out.startswith("1 row in ")
    assert len((tmp_path / f"out {name}").read_text().splitlines()) == 2


def test_left_out_rows_are_told_and_have_an_exit_code(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(GOOD + "x,1,2\n")
    code, out, _ = run(tmp_path / "in.csv", tmp_path / "out.csv", "--on-error", "record")

    assert code == 3
    assert "left out, being at fault: 1 row, told in " in out
    assert run(tmp_path / "in.csv", tmp_path / "out.csv", "--on-error", "skip", "--quiet") == (3, "", "")


def test_the_summary_can_be_json(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(GOOD)
    code, out, _ = run(tmp_path / "in.csv", tmp_path / "out.csv", "--json", "--threshold", "0.1", "--passes", "7")
    told = json.loads(out)

    assert code == 0
    assert {"rows": 2, "passes": 14, "left_out": 0, "found_done": 0}.items() <= told.items()
    assert told["above"] in (0, 1, 2)
    assert {"model": "people", "version": 1, "passes": 7, "seed": 0}.items() <= told["run"].items()


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (("--on-error", "ignore"), "on_error = 'ignore' is not known; give one of fail, skip, record"),
        (("--engine", "spark"), "there is no engine 'spark'; give one of local"),
        (("--version", "7"), "has no version '7'"),
        (("--passes", "1"), "passes = 1 "),
        (("--model", ROOT / "models"), "holds several models: diabetes, digits, digits-dropconnect, digits-rows; name"),
        (("--url", "http://127.0.0.1:1"), "is a path; with --url give the model's name on the server, such as people"),
        (("--url", "http://127.0.0.1:1", "--engine", "ray"), "leave out --engine and --device"),
    ],
)
def test_options_that_do_not_fit_are_told(more: tuple[object, ...], what: str, run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(GOOD)
    code, _, err = run(tmp_path / "in.csv", tmp_path / "out.csv", *more)

    assert code == 1
    assert what in err


def test_an_interrupted_run_has_an_exit_code(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "in.csv").write_text(GOOD)
    monkeypatch.setattr(command, "score_table", interrupted)
    assert run(tmp_path / "in.csv", tmp_path / "out.csv") == (130, "", "interrupted: nothing was done yet\n")
    place_of(tmp_path / "out.csv").mkdir()
    assert "is kept: the same command goes on" in run(tmp_path / "in.csv", tmp_path / "out.csv")[2]


def test_an_interrupt_that_a_library_swallows_ends_the_run_at_the_next_block(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)

    def swallowing(*told: Any) -> pa.RecordBatch:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        return answered_rows(*told)

    (tmp_path / "in.csv").write_text(GOOD)
    monkeypatch.setattr(answering, "answered_rows", swallowing)
    assert run(tmp_path / "in.csv", tmp_path / "out.csv") == (130, "", "interrupted: nothing was done yet\n")
    assert [path.name for path in tmp_path.iterdir()] == ["in.csv"]
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("imported", ["typer", "numpy", "torch.nn"])
def test_an_interrupt_among_imports_ends_without_a_trace(imported: str, people: Path, tmp_path: Path) -> None:
    told = ["score", people, "--output", tmp_path / "out.csv", "--model", ROOT / "models" / "diabetes"]
    command = [sys.executable, "-X", "importtime", "-m", "service", *map(str, told)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stderr is not None
    with process, process.stderr:
        assert any(line.rpartition("|")[2].strip() == imported for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert (process.returncode, rest) == (130, ["interrupted\n"])


def test_what_a_result_cannot_hold_is_refused_before_anything_is_kept(run: Run, tmp_path: Path) -> None:
    digits = ROOT / "models" / "digits"
    code, _, err = run(digits / "example.json", tmp_path / "out.npy", "--model", digits, "--passes", "5")
    assert code == 1
    assert err == f"error: {tmp_path}/out.npy: a .npy file holds numbers, and label is text; name a .parquet file\n"
    assert [*tmp_path.iterdir()] == []


def test_a_column_in_other_letters_is_recognised(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text(GOOD.replace("age", "AGE"))
    assert "unknown columns: AGE; did you mean 'age'?" in run(tmp_path / "in.csv", tmp_path / "out.csv")[2]


def test_a_wrong_option_is_a_matter_of_usage(run: Run, tmp_path: Path) -> None:
    assert run(tmp_path / "in.csv", tmp_path / "out.csv", "--passes", "many")[0] == 2


@pytest.mark.parametrize("name", ["digits", "digits-rows", "digits-dropconnect", "diabetes"])
def test_every_models_example_is_scored(name: str, run: Run, tmp_path: Path) -> None:
    example = ROOT / "models" / name / "example.json"
    code, _, _ = run(example, tmp_path / "out.jsonl", "--model", ROOT / "models" / name, "--passes", "5")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    assert code == 0
    assert [row["row"] for row in rows] == [*range(len(json.loads(example.read_bytes())["inputs"]))]


def test_the_same_command_gives_the_same_bytes(run: Run, people: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(people, tmp_path / f"{name}.parquet")[0] == 0

    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()


@pytest.mark.slow
def test_twenty_kills_at_random_moments_give_the_bytes_of_an_undisturbed_run(model: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(1).normal((40.0, 170.0, 70.0), 5.0, (2_000_000, 3))
    pq.write_table(pa.table(dict(zip(("age", "height", "weight"), rows.T, strict=True))), tmp_path / "in.parquet")
    told = [sys.executable, "-m", "service", "score", str(tmp_path / "in.parquet"), "--model", str(model)]
    told += ["--passes", "20", "--quiet", "--output"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    chance, kept = random.Random(7), 0
    disturbed, whole = tmp_path / "disturbed.parquet", tmp_path / "whole.parquet"
    for _ in range(20):
        process = subprocess.Popen([*told, str(disturbed)], env=environment)
        until = time.monotonic() + 120
        while len([*place_of(disturbed).glob("*.arrow")]) <= kept and time.monotonic() < until:
            assert process.poll() is None, "it ended before it was killed twenty times"
            time.sleep(0.001)
        time.sleep(chance.random() * 0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = len([*place_of(disturbed).glob("*.arrow")])
        assert not disturbed.exists()
    for output in (disturbed, whole):
        assert subprocess.run([*told, str(output)], env=environment).returncode == 0

    assert disturbed.read_bytes() == whole.read_bytes()
    assert pq.read_table(disturbed)["row"].to_pylist() == [*range(2_000_000)]


def shown() -> list[list[str]]:
    """Return the README's commands that score what is here by a model that is here."""
    lines = [line.split() for line in (ROOT / "README.md").read_text().splitlines()]
    commands = [line[2:] for line in lines if line[:2] == ["thinnet", "score"]]
    return [command for command in commands if not {"--url", "--engine"} & {*command}]


@pytest.mark.parametrize("told", shown(), ids=" ".join)
def test_the_readmes_commands_score(told: list[str], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, flag, output, *more = told
    assert flag == "--output"
    monkeypatch.chdir(ROOT)
    code, out, _ = run(Path(source), tmp_path / output, *more)

    assert code == 0
    assert " rows in " in out
