"""Recurrent layers trained with dropout in their steps."""

from typing import Any

import torch
from specimen import WIDTH, Specimen, sequence
from torch import Tensor, nn

from service.dropout import DropoutGRU, DropoutLSTM, RecurrentDropout, RNNDrop, VariationalRNN, Zoneout


class Layers(nn.Module):
    """The last step's outputs of layers with dropout in their steps."""

    def __init__(self, layer: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = layer(WIDTH, 5, **options)
        self.head = nn.Linear(10 if options.get("bidirectional") else 5, 3)
        self.batch_first = options.get("batch_first", False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x if self.batch_first else x.transpose(0, 1))[0]
        return self.head(y[:, -1] if self.batch_first else y[-1])


class Lengths(nn.Module):
    """Outputs and final states of rows of several lengths, both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = DropoutLSTM(WIDTH, 5, batch_first=True, bidirectional=True, variant=Zoneout(0.3, 0.2))

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, (_, c) = self.rnn(x, lengths=lengths)
        return y.sum(1), c.transpose(0, 1).flatten(1)


class Chained(nn.Module):
    """Dropout before a layer whose initial state comes from the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.2)
        self.rnn = DropoutGRU(WIDTH, 5, batch_first=True, variant=RecurrentDropout(0.3, 0))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.rnn(self.drop(x), h.transpose(0, 1).contiguous())[1].squeeze(0)


def with_lengths(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, 4, WIDTH), 1 + torch.arange(rows) % 4


def with_state(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, 4, WIDTH), torch.randn(rows, 1, 5)


def variational() -> nn.Module:
    return Layers(DropoutLSTM, num_layers=2, batch_first=True, bidirectional=True, variant=VariationalRNN(0.3))


def untied() -> nn.Module:
    return Layers(DropoutGRU, bias=False, variant=VariationalRNN(0.3, 1))


def rnn_drop() -> nn.Module:
    return Layers(DropoutLSTM, variant=RNNDrop(0.3))


CELLS = (
    Specimen("variational lstm, two layers, both directions", variational, sequence),
    Specimen("gru with a mask for each gate, batch on axis 1", untied, sequence),
    Specimen("lstm with dropped cell states", rnn_drop, sequence),
    Specimen("zoneout of rows of several lengths", Lengths, with_lengths),
    Specimen("dropout before recurrent dropout with an initial state", Chained, with_state),
)
