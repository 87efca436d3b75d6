"""The command line: each command by hand, and one line with a cure where it cannot."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from processes import server

from service.cli import app, main

ROOT = Path(__file__).parents[1]
DIABETES = ROOT / "models" / "diabetes"
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined] # a group


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["thinnet", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^0$"):
            main()
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["thinnet", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^1$"):
            main()
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1
    return told


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from service.cli import app\n"
        "try: app(['serve', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--device" in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "key"])  # which runs no network
def test_every_command_takes_a_device_and_says_what_it_does(name: str) -> None:
    assert "--device" in [option for parameter in COMMANDS[name].params for option in parameter.opts]
    assert COMMANDS[name].help


def test_the_commands_are_those_that_are_promised() -> None:
    assert {"serve", "predict", "score", "export", "models", "variants"} <= set(COMMANDS)


def test_predict_reads_json_csv_and_numpy_alike(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import numpy as np

    with (DIABETES / "example.csv").open() as file:
        rows = [[float(cell) for cell in row] for row in list(csv.reader(file))[1:]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    np.save(tmp_path / "rows.npy", np.array(rows))
    files = (DIABETES / "example.csv", tmp_path / "rows.json", tmp_path / "rows.npy")
    answers = [json.loads(run(capsys, "predict", DIABETES, file, "--passes", 20, "--seed", 1)) for file in files]
    assert answers[0] == answers[1] == answers[2]
    assert (answers[0]["model"], answers[0]["passes"], answers[0]["seed"]) == ("diabetes", 20, 1)
    assert len(answers[0]["mean"]) == len(rows)


def test_predict_takes_a_precision(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "predict", DIABETES, DIABETES / "example.csv", "--precision", "bfloat16"))
    assert any("bfloat16" in note for note in found["notes"])
    assert "'half' is not served" in refused(
        capsys, "predict", DIABETES, DIABETES / "example.csv", "--precision", "half"
    )


def test_predict_takes_an_estimator_and_a_tolerance(capsys: pytest.CaptureFixture[str]) -> None:
    rows = DIABETES / "example.csv"
    found = json.loads(run(capsys, "predict", DIABETES, rows, "--tolerance", 0.3))
    assert set(found["passes_used"]) <= {64, 128, 256, 512}
    assert found["estimator"] == "sampled"
    assert "estimator 'integrated' needs a linear output" in refused(
        capsys, "predict", DIABETES, rows, "--estimator", "integrated"
    )


def test_predict_answers_an_example_request_as_the_server_does(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "predict", ROOT / "models" / "digits", ROOT / "models" / "digits" / "example.json"))
    assert {"mean", "variance", "label", "probability", "mutual_information"} <= set(found)


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ("age,sex\n1,2\n", "rows.csv", "rows.csv"),
        ("[[1, 2]]", "rows.json", "has the shape [1, 2], it should be [rows, 10]"),
        ("{", "rows.json", "not JSON"),
        ("junk", "rows.npy", "rows.npy cannot be read"),
        ("x", "rows.xlsx", "is none of .json, .csv, .npy"),
    ],
)
def test_predict_says_what_is_wrong_with_the_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, name: str, told: str
) -> None:
    (tmp_path / name).write_text(content)
    assert told in refused(capsys, "predict", DIABETES, tmp_path / name)


def test_what_is_not_there_is_said_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "not a model folder" in refused(capsys, "predict", tmp_path / "none", DIABETES / "example.csv")
    assert "cannot be read" in refused(capsys, "predict", DIABETES, tmp_path / "none.csv")
    assert "not a folder of models" in refused(capsys, "models", tmp_path / "none")
    assert "nothing in" in refused(capsys, "serve", tmp_path, "--port", 0)
    assert "device 'cuda:7' cannot be used" in refused(capsys, "models", ROOT / "models", "--device", "cuda:7")
    assert "no version '9'; it has 1" in refused(capsys, "predict", DIABETES, DIABETES / "example.csv", "--version", 9)


def test_a_server_that_could_not_start_leaves_signals_and_environment_as_they_were(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def state() -> list[object]:
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        return [*map(signal.getsignal, numbers), os.environ.get("PROMETHEUS_MULTIPROC_DIR")]

    before = state()
    refused(capsys, "serve", tmp_path, "--port", 0)
    assert state() == before


def test_a_port_in_use_is_told_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "service", "serve", "models", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: 127.0.0.1, port ")
    assert "cannot be listened on: Address already in use; give another port or host" in done.stderr
    assert "Traceback" not in done.stderr


def test_models_and_variants_list_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    listed = run(capsys, "models", ROOT / "models")
    assert all(name in listed for name in ("diabetes", "digits", "digits-dropconnect", "drop_channels"))
    assert "Wan et al. 2013" in run(capsys, "variants")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with server(str(ROOT / "models")) as found:
        yield found


def test_the_start_up_says_address_models_sites_and_how_to_call(address: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        from service.api.server import banner
        from service.repository import Repository
        from service.settings import Settings

        told = banner(Repository(Path("models")), address, Settings())
        assert f"serves models at {address}" in told
        assert "drop_channels (spatial, p = 0.3)" in told
        call = next(line.strip() for line in told.splitlines() if line.strip().startswith("curl"))
        found = json.loads(subprocess.run(["bash", "-c", call], capture_output=True, check=True).stdout)
    assert found["mean"]
    assert found["variance"]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_score_gives_the_same_numbers_here_and_at_a_server(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, address: str
) -> None:
    source, here, there = DIABETES / "example.csv", tmp_path / "here.csv", tmp_path / "there.csv"
    narrow = ("--precision", "bfloat16")
    assert "rows in" in run(capsys, "score", source, "--output", here, "--model", DIABETES, *narrow)
    run(capsys, "score", source, "--output", there, "--model", "diabetes", "--url", address, *narrow)
    mine, theirs = read(here), read(there)
    assert list(mine[0])[:3] == ["row", "mean", "variance"]
    assert [list(row) for row in mine] == [list(row) for row in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert {key: float(value) for key, value in a.items()} == pytest.approx(
            {key: float(value) for key, value in b.items()}, rel=1e-5
        )


FACTORY = """
from torch import nn

def network(width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3))
"""


def test_export_makes_a_folder_that_is_served(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch

    (tmp_path / "mine.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import mine  # type: ignore[import-not-found] # written just now

        torch.save(mine.network().state_dict(), tmp_path / "weights.pth")
        arguments: tuple[Any, ...] = (
            "--example",
            "4",
            "--weights",
            tmp_path / "weights.pth",
            "--task",
            "classification",
        )
        labels = [word for name in "abc" for word in ("--label", name)]
        told = run(capsys, "export", "mine:network", tmp_path / "models" / "mine", *arguments, *labels)
        assert "2 (activation, [8]): bernoulli, p = 0.3" in told
        (tmp_path / "rows.json").write_text("[[0, 1, 2, 3]]")
        found = json.loads(run(capsys, "predict", tmp_path / "models" / "mine", tmp_path / "rows.json"))
        assert found["label"][0] in ("a", "b", "c")
        assert sum(found["mean"][0]) == pytest.approx(1)
        assert "mine:net" in refused(capsys, "export", "mine:net", tmp_path / "models" / "other", *arguments)
