"""Sequences of any length: what a longer one adds leaves the noise of the shorter one's positions as it was."""

import pytest
import torch
from specimen import WIDTH, Specimen, mlp
from torch import Tensor, nn
from torch.export import Dim, export
from zoo_graphs import Positions
from zoo_layers import Frames

from service import Predictor
from service.dropout import DropoutLSTM, LockedDropout, VariationalRNN, Zoneout
from service.dropout.variant import CellVariant
from service.graph.capture import from_program


def steps(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 7, WIDTH),)


def frames(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 7, 1, 6, 6),)


class Steps(nn.Module):
    """A recurrent layer's outputs at every step."""

    def __init__(self, variant: CellVariant) -> None:
        super().__init__()
        self.rnn = DropoutLSTM(WIDTH, 5, batch_first=True, variant=variant)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


GROWING = (
    Specimen("dropout of each position", lambda: mlp(nn.Dropout(0.4)), steps),
    Specimen("locked dropout of each position", lambda: mlp(LockedDropout(0.4)), steps),
    Specimen("rows and positions in one axis", Positions, steps),
    Specimen("spatial dropout of frames", Frames, frames),
    Specimen("one mask for all steps", lambda: Steps(VariationalRNN(0.4)), steps),
    Specimen("a mask for each step", lambda: Steps(Zoneout(0.4, 0.3)), steps),
)


@pytest.mark.parametrize("growing", GROWING, ids=repr)
@pytest.mark.parametrize("scope", ["pass", "row"])
def test_a_longer_sequence_leaves_the_noise_of_a_shorter_one(growing: Specimen, scope: str) -> None:
    (x,) = growing.inputs(3)
    with torch.no_grad():
        shapes = ({0: Dim("batch"), 1: Dim("length")},)
        predictor = Predictor(from_program(export(growing.make().train(), (x,), dynamic_shapes=shapes)))
    asked = {"passes": 5, "scope": scope, "quantities": ["samples"]}
    whole = predictor.predict(x, **asked).outputs["output"]["samples"]

    assert bool(whole.var(1).any())
    for length in (2, 5):
        part = predictor.predict(x[:, :length], **asked).outputs["output"]["samples"]
        torch.testing.assert_close(part, whole[:, :, :length])
