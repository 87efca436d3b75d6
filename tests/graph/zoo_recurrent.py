"""Recurrent layers with dropout between them, and cells in a Python loop."""

from typing import Any

import torch
from specimen import WIDTH, Specimen, sequence
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import LockedDropout, WeightDropGRU, WeightDropLSTM


class Recurrent(nn.Module):
    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.cell = cell(WIDTH, 5, num_layers=2, dropout=0.4, **options)
        self.batch_first = options.get("batch_first", False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x if self.batch_first else x.transpose(0, 1))[0]
        return y.mean(1) if self.batch_first else y.mean(0)


class FinalStates(nn.Module):
    """The last layer's final state, both directions, beside the outputs."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.cell = cell(WIDTH, 5, num_layers=2, dropout=0.4, batch_first=True, bidirectional=True, **options)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, final = self.cell(x)
        state = final[0] if isinstance(final, tuple) else final
        return y.mean(1), state[-2:].transpose(0, 1).flatten(1)


class StateIn(nn.Module):
    """Initial states from the caller, rows in front."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(WIDTH, 5, 2, dropout=0.4, batch_first=True)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> Tensor:
        state = (h.transpose(0, 1).contiguous(), c.transpose(0, 1).contiguous())
        return self.cell(x, state)[0].mean(1)


class CellLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(x.shape[0], 5)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (F.dropout(h, 0.3, self.training), c))
        return h


class Locked(nn.Module):
    """One mask for all steps, on an input of the recurrent layer and on its output."""

    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.first, self.second = LockedDropout(0.3, batch_first), LockedDropout(0.4, batch_first)
        self.cell = nn.GRU(WIDTH, 5, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.cell(self.first(x if self.batch_first else x.transpose(0, 1)))[0])
        return y.mean(1 if self.batch_first else 0)


class WeightDropped(nn.Module):
    """Recurrent weights masked, and dropout between the layers."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.cell = cell(WIDTH, 5, num_layers=2, dropout=0.4, p=0.3, **options)
        self.batch_first = options.get("batch_first", False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x if self.batch_first else x.transpose(0, 1))[0]
        return y.mean(1) if self.batch_first else y.mean(0)


def with_states(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, 4, WIDTH), torch.randn(rows, 2, 5), torch.randn(rows, 2, 5)


RECURRENT = (
    Specimen("lstm between layers", lambda: Recurrent(nn.LSTM, batch_first=True), sequence),
    Specimen("gru between layers, batch on axis 1", lambda: Recurrent(nn.GRU), sequence),
    Specimen("bidirectional rnn", lambda: Recurrent(nn.RNN, bidirectional=True, batch_first=True), sequence),
    Specimen("rnn with relu", lambda: Recurrent(nn.RNN, nonlinearity="relu", batch_first=True), sequence),
    Specimen("lstm with projections, no bias", lambda: FinalStates(nn.LSTM, proj_size=2, bias=False), sequence),
    Specimen("gru's final states", lambda: FinalStates(nn.GRU), sequence),
    Specimen("lstm with initial states", StateIn, with_states),
    Specimen("lstm cells in a loop", CellLoop, sequence),
    Specimen("locked dropout", lambda: Locked(True), sequence),
    Specimen("locked dropout, batch on axis 1", lambda: Locked(False), sequence),
    Specimen("weight-dropped lstm", lambda: WeightDropped(WeightDropLSTM, batch_first=True), sequence),
    Specimen("weight-dropped gru, both ways", lambda: WeightDropped(WeightDropGRU, bidirectional=True), sequence),
)
