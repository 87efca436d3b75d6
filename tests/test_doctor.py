"""`thinnet doctor`: what a machine has, which way passes run there, and why."""

import sys
from pathlib import Path

import pytest
import torch

from service.cli import main
from service.doctor import findings
from service.repository import check_device

MODELS = Path(__file__).parents[1] / "models"


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    monkeypatch.setattr(sys, "argv", ["thinnet", "doctor", *arguments])
    with pytest.raises(SystemExit, match=r"^[01]$"):
        main()
    ended = capsys.readouterr()
    return ended.out + ended.err


def test_it_says_how_each_models_passes_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = told(capsys, monkeypatch, str(MODELS)).splitlines()

    assert any(line.startswith("torch") and torch.__version__ in line for line in lines)
    assert "digits-dropconnect   passes run folded" in lines
    assert "runs on              cpu, as 'auto' was asked for" in "\n".join(lines)


@pytest.mark.parametrize(
    ("what", "devices", "triton", "said"),
    [
        ("dropconnect", {"cuda"}, True, "packed until they are multiplied; no kernels: they serve cuda, not cpu"),
        ("dropconnect", {"cpu"}, True, "kernels: masks and normals are made in registers, inside the product"),
        ("dropconnect", {"cpu"}, False, "no kernels: triton is not installed; pip install triton"),
        ("activations", {"cpu"}, True, "noise is made in registers, after the activation function, for all passes"),
        ("thinned products", {"cpu"}, True, "of each pass what it keeps, all in one launch, where that is faster"),
        ("thinned products", {"cuda"}, True, "where that is faster; no kernels: they serve cuda, not cpu"),
        ("activations", {"cuda"}, True, "noise is drawn on the CPU, and kept; no kernels: they serve cuda, not cpu"),
    ],
)
def test_it_says_which_path_noise_takes_and_why(
    what: str, devices: set[str], triton: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.graph.kernels.DEVICES", devices)
    monkeypatch.setattr("service.graph.kernels.find_spec", lambda name: triton or None)

    assert dict(findings(MODELS / "none", "cpu"))[what].endswith(said)


def test_without_models_it_says_so_and_still_tells_of_the_machine(tmp_path: Path) -> None:
    found = dict(findings(tmp_path / "none", "cpu"))

    assert "no model" in found["models"] or "not a folder" in found["models"]
    assert found["thinnet"]


def test_a_device_that_is_not_there_is_one_line_with_a_cure(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = told(capsys, monkeypatch, "--device", "cuda:7")

    assert found.startswith("error: device 'cuda:7' cannot be used: ")
    assert found.endswith("; try auto or cpu\n")


@pytest.mark.parametrize(("gpus", "taken"), [(0, "cpu"), (2, "cuda")])
def test_auto_is_a_gpu_where_there_is_one(gpus: int, taken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch, "empty", lambda size, device: None)

    assert check_device("auto") == torch.device(taken)
