"""What cannot be served truly is refused by name, with the place and the cure."""

import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from specimen import WIDTH, features, image, mlp, naive, sequence
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_graphs import UnderAutocast, UnderCond
from zoo_paths import PythonRandom

from service import Predictor
from service.errors import CaptureFailed, ImpureGraph, InvalidPlan, UnclaimedRandomness
from service.graph.capture import from_program


def test_dropout_under_autocast_is_refused_by_place() -> None:
    with pytest.raises(UnclaimedRandomness, match=r"dropout.*'body\.2'.*inside wrap_with_autocast"):
        Predictor.capture(UnderAutocast(), features(2))


def test_dropout_under_cond_is_refused_by_place() -> None:
    with pytest.raises(UnclaimedRandomness, match=r"aten.dropout.default.*inside cond"):
        Predictor.capture(UnderCond(), features(2))


class NoiseLayer(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


def test_a_random_operation_that_is_no_site_is_refused_by_place() -> None:
    with pytest.raises(UnclaimedRandomness, match=r"aten.randn_like.default in module '1' .*NoiseLayer"):
        Predictor.capture(nn.Sequential(nn.Linear(WIDTH, 3), NoiseLayer()), features(2))


class RandomShortcut(nn.Module):
    """A gate that is neither dropout nor any drop-path idiom."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, 0.5)) if self.training else x


def test_a_hand_made_mask_is_refused_rather_than_missed() -> None:
    with pytest.raises(UnclaimedRandomness, match="bernoulli"):
        Predictor.capture(nn.Sequential(nn.Linear(WIDTH, 3), RandomShortcut()), features(2))


def test_pythons_random_numbers_leave_that_class_in_eval_and_name_it() -> None:
    state = random.getstate()
    predictor = Predictor.capture(PythonRandom(), features(2))

    assert predictor.lost == ("the root (PythonRandom)",)
    assert [site.name for site in predictor.sites if site.p] == ["drop"]
    assert random.getstate() == state


class NumpyRandom(PythonRandom):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or np.random.rand() >= 0.5:
            x = torch.relu(self.a(x))
        return self.b(self.drop(x))


def test_numpys_random_numbers_are_seen_too() -> None:
    assert Predictor.capture(NumpyRandom(), features(2)).lost == ("the root (NumpyRandom)",)


class OwnGenerator(PythonRandom):
    """Random numbers from a generator that the module holds."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.generator.random() >= 0.5:
            x = torch.relu(self.a(x))
        return self.b(self.drop(x))


GENERATORS = (random.Random(1), np.random.default_rng(1), np.random.RandomState(1))


@pytest.mark.parametrize("generator", GENERATORS, ids=lambda each: type(each).__name__)
def test_a_generator_of_the_modules_own_is_seen_too(generator: Any) -> None:
    assert Predictor.capture(OwnGenerator(generator), features(2)).lost == ("the root (OwnGenerator)",)


class LayerDrop(PythonRandom):
    """Skipped by torch's random numbers, read as a Python number."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or torch.rand(1).item() >= 0.5:
            x = torch.relu(self.a(x))
        return self.b(self.drop(x))


def test_a_layer_skipped_by_torchs_random_numbers_stays_in_eval() -> None:
    predictor = Predictor.capture(LayerDrop(), features(2))

    assert predictor.lost == ("the root (LayerDrop)",)
    assert [site.name for site in predictor.sites if site.p] == ["drop"]


class LockedDropout(nn.Module):
    """One mask for all positions, drawn by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], 1, x.shape[2]).bernoulli_(0.7) / 0.7 if self.training else x


class UnscaledPath(nn.Module):
    """Drop path that does not divide by the keep rate: its mean is not its input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], 1, 1).bernoulli_(0.7) if self.training else x


class SquaredPath(nn.Module):
    """A gate that multiplies itself."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        gate = x.new_empty(x.shape[0], 1, 1).bernoulli_(0.7).div_(0.7)
        return x * (gate * gate)


class WrongRate(nn.Module):
    """Hugging Face's drop path with another rate in the division."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        gate = (0.7 + torch.rand(x.shape[0], 1, 1)).floor_()
        return x.div(0.6) * gate


class GatePerPosition(nn.Module):
    """A gate for each row and position."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], x.shape[1], 1).bernoulli_(0.7).div_(0.7) if self.training else x


ALMOST_PATHS = (LockedDropout, UnscaledPath, SquaredPath, WrongRate, GatePerPosition)


@pytest.mark.parametrize("almost", ALMOST_PATHS)
def test_what_is_almost_drop_path_is_refused_rather_than_taken_for_it(almost: type[nn.Module]) -> None:
    with pytest.raises(UnclaimedRandomness, match=rf"aten\.(bernoulli_|rand).* in module '1' \(.*{almost.__name__}\)"):
        Predictor.capture(nn.Sequential(nn.Linear(WIDTH, 3), almost()), sequence(2))


@pytest.mark.parametrize("layer", [nn.RReLU(), nn.FractionalMaxPool2d(2, output_size=3)])
def test_other_random_layers_of_torch_are_refused(layer: nn.Module) -> None:
    with pytest.raises(UnclaimedRandomness, match=r"aten\.(rrelu|rand)\..* in module '0' \(torch\.nn\.modules"):
        Predictor.capture(nn.Sequential(layer, nn.Dropout(0.3)), image(2))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(WIDTH, 5, 2, dropout=0.4, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.cell(packed)[0], batch_first=True, total_length=4)[0]


def test_packed_sequences_are_refused() -> None:
    with pytest.raises(CaptureFailed, match=r"torch\.export cannot read the network"):
        Predictor.capture(Packed(), (torch.randn(2, 4, WIDTH), torch.tensor([3, 4])))


class CountsInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen += 1
        return x


def test_a_class_that_writes_to_its_state_in_training_only_stays_in_eval() -> None:
    predictor = Predictor.capture(nn.Sequential(CountsInTraining(), mlp(nn.Dropout(0.3))), features(2))

    assert predictor.lost == ("0 (CountsInTraining)",)
    assert [site.name for site in predictor.sites if site.p] == ["1.2"]


def test_batch_norm_without_running_statistics_is_refused() -> None:
    network = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(0.3))
    with pytest.raises(ImpureGraph, match=r"batch_norm.*uses its batch's own statistics; .* with running statistics"):
        Predictor.capture(network, features(2))


class FoldedChannels(nn.Module):
    """Spatial dropout with rows folded into an axis behind the channels."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout2d(x.flatten(0, 1).t()[None, :, :, None], 0.3, self.training)
        return y[0, :, :, 0].t().unflatten(0, (-1, x.shape[1]))


def test_spatial_dropout_whose_channels_cannot_be_told_from_rows_is_refused() -> None:
    with pytest.raises(CaptureFailed, match="rows share channels' noise there; put the batch on the first axis"):
        Predictor.capture(FoldedChannels(), sequence(2))


class OtherwiseInTraining(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if self.training else x


def test_a_class_that_computes_otherwise_in_training_stays_in_eval() -> None:
    predictor = Predictor.capture(nn.Sequential(mlp(nn.Dropout(0.3)), OtherwiseInTraining()), features(2))

    assert predictor.lost == ("1 (OtherwiseInTraining)",)


def test_one_row_is_example_enough() -> None:
    predictor = Predictor.capture(mlp(nn.Dropout(0.3)), torch.randn(1, WIDTH))

    assert predictor.predict(torch.randn(3, WIDTH), passes=4).mean.shape == (3, 3)


def exported(module: nn.Module, dynamic: bool = True) -> torch.export.ExportedProgram:
    shapes = {"x": {0: torch.export.Dim("batch")}} if dynamic else None
    with torch.no_grad():
        program = torch.export.export(
            module, features(2), dynamic_shapes=({0: torch.export.Dim("batch")},) if shapes else None
        )
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def test_a_static_batch_axis_is_refused_with_the_recipe() -> None:
    with pytest.raises(CaptureFailed, match=r"fixed shape \(2, 6\).*dynamic_shapes"):
        from_program(exported(naive(mlp(nn.Dropout(0.3))), dynamic=False))


def test_training_batch_norm_in_a_file_is_refused() -> None:
    network = nn.Sequential(nn.Linear(WIDTH, 4), nn.BatchNorm1d(4), nn.Dropout(0.3)).train()
    with pytest.raises(ImpureGraph, match=r"batch_norm|num_batches_tracked"):
        from_program(exported(network))


def test_a_file_exported_in_eval_mode_still_shows_its_plain_dropout() -> None:
    captured = from_program(exported(mlp(nn.Dropout(0.3)).eval()))

    trained = [located.site for located in captured.activation_sites() if located.site.is_trained]
    assert [(site.name, site.p) for site in trained] == [("2", 0.3)]


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return F.dropout(x, 0.3, self.training) + self.seen


def test_a_network_that_writes_to_its_own_state_is_refused() -> None:
    with pytest.raises(ImpureGraph, match="writes to the network's own 'seen'"):
        Predictor.capture(Counter(), features(2))


class IntegerOutput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training).argmax(-1)


def test_integer_outputs_are_refused_with_the_reason() -> None:
    with pytest.raises(CaptureFailed, match=r"output 'output' is torch.int64.*floating-point"):
        Predictor.capture(IntegerOutput(), features(2))


class DataDependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training)[x[:, 0] > 0]


def test_outputs_of_a_length_that_depends_on_the_data_are_refused() -> None:
    with pytest.raises(CaptureFailed, match=r"output 'output' has the shape .* one entry for each row"):
        Predictor.capture(DataDependent(), features(2))


def test_examples_with_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(CaptureFailed, match="same number of rows"):
        Predictor.capture(mlp(nn.Dropout(0.3)), (torch.randn(2, WIDTH), torch.randn(3, WIDTH)))


def test_a_rate_of_one_is_refused_where_it_stands() -> None:
    predictor = Predictor.capture(mlp(nn.Dropout(1.0)), features(2))

    with pytest.raises(InvalidPlan, match=r"site '2': bernoulli: p = 1.0"):
        predictor.predict(features(2)[0])


class UnwrittenMemory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.3, self.training) + torch.empty(WIDTH)


def test_memory_that_nothing_has_written_is_never_read() -> None:
    with pytest.raises(ImpureGraph, match=r"aten.empty.* is read before it is written"):
        Predictor.capture(UnwrittenMemory(), features(2))


class Centred(nn.Module):
    """A network whose rows see one another."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.drop, self.head = nn.Linear(WIDTH, 6), nn.Dropout(1e-6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.inner(x).relu())
        return self.head(h - h.mean(0))


def test_passes_of_rows_that_see_one_another_are_never_folded_together() -> None:
    """At this rate the few passes that a check runs all draw the same noise, and folded ones look right."""
    predictor = Predictor.capture(Centred().eval(), torch.randn(2, WIDTH))

    assert predictor.couples_rows
    assert predictor.mode() == "vmapped"
