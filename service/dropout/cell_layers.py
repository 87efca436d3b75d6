"""LSTM and GRU layers to train with dropout within their steps, and their operators; it does not know sites."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from service.dropout.cell import GRU_GATES, LSTM_GATES, CellLayer, States, run_layer
from service.dropout.operator import register
from service.dropout.recurrent_dropout import RecurrentDropout
from service.dropout.rnn_drop import RNNDrop
from service.dropout.variant import CellVariant, Kind
from service.dropout.variational_rnn import VariationalRNN
from service.dropout.zoneout import Zoneout
from service.errors import InvalidPlan

CELL_VARIANTS: dict[str, type[CellVariant]] = {
    each.name: each for each in (VariationalRNN, RNNDrop, RecurrentDropout, Zoneout)
}


def layer_of(
    variant: str, settings: Sequence[float], parameters: Sequence[Tensor], units: int, bidirectional: bool
) -> CellLayer:
    """Return the layer that an operator's arguments describe."""
    gates, inputs = parameters[0].shape[0] // units, parameters[0].shape[1]
    return CellLayer(CELL_VARIANTS[variant](*settings), gates, inputs, units, 2 if bidirectional else 1)


def run_in_eval(
    x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor], lengths: Tensor | None,
    bidirectional: bool, batch_first: bool, variant: str, settings: Sequence[float],
) -> States:  # fmt: skip
    """Run a layer's eval network: the plain layer, or the one whose noise is as expected.

    Returns:
        The outputs and the final states.
    """
    layer = layer_of(variant, settings, parameters, states[0].shape[-1], bidirectional)
    if layer.variant.plain_in_eval and lengths is None:
        rest = (list(parameters), len(parameters) > 2 * layer.directions, 1, 0.0, False, bidirectional, batch_first)
        torchs: States = torch.lstm(x, list(states), *rest) if len(states) == 2 else torch.gru(x, states[0], *rest)
        return torchs
    return run_layer(layer, layer.expected_noise(x), x, tuple(states), parameters, lengths, batch_first)


def _run(
    x: Tensor, states: Sequence[Tensor], parameters: Sequence[Tensor], lengths: Tensor | None,
    bidirectional: bool, batch_first: bool, variant: str, settings: Sequence[float], train: bool,
) -> States:  # fmt: skip
    """Run a layer, in training with noise of its own for each row."""
    if torch.compiler.is_exporting():
        return _shapes_alone(x, states)
    if not train:
        return run_in_eval(x, states, parameters, lengths, bidirectional, batch_first, variant, settings)
    layer = layer_of(variant, settings, parameters, states[0].shape[-1], bidirectional)
    rows, steps = x.shape[:2] if batch_first else (x.shape[1], x.shape[0])
    shape = layer.shape(steps)
    noise = layer.variant.noise(torch.rand(rows, *layer.variant.drawn(shape), device=x.device), shape)
    return run_layer(layer, noise, x, tuple(states), parameters, lengths, batch_first)


def _shapes_alone(x: Tensor, states: Sequence[Tensor]) -> States:
    """Return zeros of the results' shapes: running the steps would fix their number in the exported graph."""
    directions, _, units = states[0].shape
    return x.new_zeros(*x.shape[:2], directions * units), *(torch.zeros_like(each) for each in states)


def _lstm(x: Tensor, h: Tensor, c: Tensor, *rest: Any) -> States:
    return _run(x, (h, c), *rest)


def _gru(x: Tensor, h: Tensor, *rest: Any) -> States:
    return _run(x, (h,), *rest)


_REST = (
    "Tensor[] parameters, Tensor? lengths, bool bidirectional, bool batch_first, str variant, float[] settings, "
    "bool train"
)
lstm_layer = register(f"lstm_layer(Tensor x, Tensor h, Tensor c, {_REST}) -> (Tensor, Tensor, Tensor)", _lstm)
gru_layer = register(f"gru_layer(Tensor x, Tensor h, {_REST}) -> (Tensor, Tensor)", _gru)


class _DropoutCells(nn.RNNBase):
    """Layers of cells, their parameters named and initialised as torch's own."""

    cells: ClassVar[str]
    gates: ClassVar[int]
    operator: ClassVar[Any]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        bidirectional: bool = False,
        variant: CellVariant | None = None,
    ) -> None:
        super().__init__(self.cells, input_size, hidden_size, num_layers, bias, batch_first, 0.0, bidirectional)
        self.variant = variant if variant is not None else VariationalRNN()
        if not self.variant.fits(Kind.CELL, (1, 1, self.gates, input_size, hidden_size)):
            raise InvalidPlan(f"{type(self).__name__}: {self.variant.name!r} does not act in its cells")

    def _run(self, x: Tensor, states: States, lengths: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Run all layers; return the outputs and the final states [layers · directions, B, units]."""
        settings = [float(each) for each in self.variant.parameters().values()]
        directions = 2 if self.bidirectional else 1
        finals: list[list[Tensor]] = []
        for layer in range(self.num_layers):
            own = [state.narrow(0, layer * directions, directions) for state in states]
            rest = (self.bidirectional, self.batch_first, self.variant.name, settings, self.training)
            x, *final = type(self).operator(x, *own, self._parameters_of(layer), lengths, *rest)
            finals.append(final)
        return x, [torch.cat(each) for each in zip(*finals, strict=True)]

    def _parameters_of(self, layer: int) -> list[Tensor]:
        what = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if self.bias else 2]
        ways = ("", "_reverse")[: 2 if self.bidirectional else 1]
        return [getattr(self, f"{each}_l{layer}{way}") for way in ways for each in what]

    def _zeros(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if x.dim() != 3 or x.shape[2] != self.input_size:
            raise ValueError(
                f"{type(self).__name__} of {self.input_size} inputs got the shape {tuple(x.shape)}; give rows and steps"
            )
        if lengths is not None and lengths.dim() != 1:
            raise ValueError(f"lengths have the shape {tuple(lengths.shape)}; give one for each row")
        rows = x.shape[0] if self.batch_first else x.shape[1]
        return x.new_zeros(self.num_layers * (2 if self.bidirectional else 1), rows, self.hidden_size)


class DropoutLSTM(_DropoutCells):
    """Train LSTM layers with dropout within their steps; in eval mode the variant's mean, which most often is the LSTM.

    It has the parameters of `torch.nn.LSTM` by the same names, so that either loads the other's state. Every row of a
    batch has noise of its own.

    Args:
        input_size: Size of x_t.
        hidden_size: How many units.
        num_layers: How many layers, each on the outputs of the one before.
        bias: Whether there are biases.
        batch_first: Whether x is [B, steps, inputs] rather than [steps, B, inputs].
        bidirectional: Whether a second direction reads backwards.
        variant: The dropout; variational with its default rate where there is none.
    """

    cells = "LSTM"
    gates = LSTM_GATES
    operator = lstm_layer

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the outputs, zero beyond a row's length, and the final h and c [layers · directions, B, units].

        Args:
            x: The sequences.
            state: The first h and c; zeros where there are none.
            lengths: How many steps each row has [B]; the others reach neither outputs nor states.
        """
        zeros = self._zeros(x, lengths)
        y, (h, c) = self._run(x, (zeros, zeros) if state is None else state, lengths)
        return y, (h, c)


class DropoutGRU(_DropoutCells):
    """Train GRU layers with dropout within their steps; in eval mode the variant's mean, which most often is the GRU.

    It has the parameters of `torch.nn.GRU` by the same names, so that either loads the other's state. Every row of a
    batch has noise of its own.

    Args:
        input_size: Size of x_t.
        hidden_size: How many units.
        num_layers: How many layers, each on the outputs of the one before.
        bias: Whether there are biases.
        batch_first: Whether x is [B, steps, inputs] rather than [steps, B, inputs].
        bidirectional: Whether a second direction reads backwards.
        variant: The dropout; variational with its default rate where there is none.
    """

    cells = "GRU"
    gates = GRU_GATES
    operator = gru_layer

    def forward(self, x: Tensor, state: Tensor | None = None, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the outputs, zero beyond a row's length, and the final h [layers · directions, B, units].

        Args:
            x: The sequences.
            state: The first h; zeros where there is none.
            lengths: How many steps each row has [B]; the others reach neither outputs nor states.
        """
        y, (h,) = self._run(x, (self._zeros(x, lengths) if state is None else state,), lengths)
        return y, h
