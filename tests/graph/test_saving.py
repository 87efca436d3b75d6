"""Every network that can be captured can be saved and loaded, and stays the same network."""

import functools
import warnings
from collections import namedtuple
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from specimen import Specimen
from torch import Tensor, nn

from service import Predictor
from service.errors import UnsafeArchive

Pair = namedtuple("Pair", ["first", "second"])


@functools.cache
def reloaded(predictor: Predictor) -> Predictor:
    """Save and load a predictor once for the whole run."""
    with TemporaryDirectory() as folder:
        return Predictor.load(predictor.save(Path(folder) / "model").parent)


def test_a_saved_network_gives_the_same_moments_for_the_same_seed(predictor: Predictor, specimen: Specimen) -> None:
    loaded, inputs = reloaded(predictor), specimen.inputs(3)
    for seed in (0, 9):
        before, after = predictor.predict(inputs, passes=6, seed=seed), loaded.predict(inputs, passes=6, seed=seed)
        assert list(after.outputs) == list(before.outputs)
        for name, quantities in before.outputs.items():
            for what in ("mean", "variance"):
                assert torch.allclose(after.outputs[name][what], quantities[what], rtol=1e-5, atol=1e-6), (name, what)


def test_a_saved_network_is_described_the_same(predictor: Predictor) -> None:
    loaded = reloaded(predictor)
    assert loaded.sites == predictor.sites
    assert loaded.inputs == predictor.inputs
    assert loaded.outputs == predictor.outputs
    assert loaded.couples_rows == predictor.couples_rows
    assert loaded.lost == predictor.lost


def test_a_loaded_network_can_be_saved_again(predictor: Predictor, specimen: Specimen) -> None:
    once, inputs = reloaded(predictor), specimen.inputs(2)
    twice = reloaded(once)
    for name, quantities in once.predict(inputs, passes=4).outputs.items():
        assert torch.equal(twice.predict(inputs, passes=4).outputs[name]["mean"], quantities["mean"])


class NamedOutputs(nn.Module):
    """Named tuples inside a dict: a file cannot name their class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(4, 3), nn.Dropout(0.3)

    def forward(self, x: Tensor) -> dict[str, object]:
        y = self.drop(self.linear(x))
        return {"pair": Pair(y, -y), "plain": y}


def captured(module: nn.Module) -> Predictor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        return Predictor.capture(module.eval(), torch.randn(2, 4))


def test_outputs_held_by_a_class_are_saved_as_a_plain_dict_and_the_original_is_untouched(tmp_path: Path) -> None:
    predictor = captured(NamedOutputs())
    before = predictor._captured.exported.call_spec.out_spec
    loaded = Predictor.load(predictor.save(tmp_path / "model").parent)
    assert [output.name for output in loaded.outputs] == [output.name for output in predictor.outputs]
    assert predictor._captured.exported.call_spec.out_spec == before


def test_a_program_swapped_after_saving_is_refused(tmp_path: Path) -> None:
    version = captured(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3))).save(tmp_path / "model")
    program = version / "program.pt2"
    data = bytearray(program.read_bytes())
    data[len(data) // 2] ^= 1
    program.write_bytes(bytes(data))
    with pytest.raises(UnsafeArchive, match=r"its SHA-256 is .* as listed; restore the file"):
        Predictor.load(version.parent)


class OtherwiseInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


def test_what_stayed_in_eval_mode_is_still_named_once_loaded() -> None:
    loaded = reloaded(captured(nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.3), OtherwiseInTraining())))
    assert loaded.lost == ("2 (OtherwiseInTraining)",)
    assert any("OtherwiseInTraining" in note for note in loaded.predict(torch.randn(2, 4), passes=2).notes)
