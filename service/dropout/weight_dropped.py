"""DropConnect on recurrent weights (AWD-LSTM), its operators and layers; it does not know cells' equations."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.noise import Shape, Stream
from service.dropout.operator import register
from service.dropout.variant import Kind, MaskedWeight, scaled_keep

State = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class WeightDropped(MaskedWeight):
    """Drop single hidden-to-hidden weights: u_t = (M / q ∘ U) h_{t-1} + b, M ~ Bernoulli(q) (Merity et al. 2018, §2).

    One M for all steps, gates apart. `mean` and `variance` are those of one step, for a fixed h; biases have no noise.
    """

    name = "weight-dropped"
    equation = "u_t = ((M / q) ∘ U) h_{t-1} + b, M ~ Bernoulli(q)"
    sampled = "one Bernoulli(q) per recurrent weight"
    shared = "all steps of a sequence; all uses of the parameter; all rows in scope pass"
    mean_form = "W x + b"
    variance_form = "(p / q) W² x²"
    reference = "Merity et al. 2018, ICLR (arXiv 1708.02182)"
    kinds = frozenset({Kind.RECURRENT_WEIGHT})
    masks_bias = False

    def draw(self, stream: Stream, shape: Shape) -> Tensor:
        """Draw M / q [S, R, gates · units, units]."""
        return scaled_keep(stream, self.q, shape)

    def apply(self, parameter: Tensor, noise: Tensor) -> Tensor:
        """Return noise ∘ parameter."""
        return parameter * noise

    def mean(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return U h + b."""
        return F.linear(x, weight, bias)

    def variance(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (p / q) U² h²."""
        return F.linear(x.square(), weight.square()) * (self.p / self.q)


def _masked(params: list[Tensor], layers: int, bidirectional: bool, p: float, train: bool) -> list[Tensor]:
    """Return a recurrent layer's parameters, each layer's and direction's second one being masked anew."""
    each = len(params) // (layers * (2 if bidirectional else 1))
    return [F.dropout(weight, p, train) if at % each == 1 else weight for at, weight in enumerate(params)]


def _lstm(
    x: Tensor, hx: list[Tensor], params: list[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, p: float,
) -> Any:  # fmt: skip
    masked = _masked(params, layers, bidirectional, p, train)
    return torch.lstm(x, hx, masked, biases, layers, dropout, train, bidirectional, batch_first)


def _gru(
    x: Tensor, hx: Tensor, params: list[Tensor], biases: bool, layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool, p: float,
) -> Any:  # fmt: skip
    masked = _masked(params, layers, bidirectional, p, train)
    return torch.gru(x, hx, masked, biases, layers, dropout, train, bidirectional, batch_first)


_SETTINGS = "bool biases, int layers, float dropout, bool train, bool bidirectional, bool batch_first, float p"
weight_drop_lstm = register(
    f"weight_drop_lstm(Tensor x, Tensor[] hx, Tensor[] params, {_SETTINGS}) -> (Tensor, Tensor, Tensor)", _lstm
)
weight_drop_gru = register(
    f"weight_drop_gru(Tensor x, Tensor hx, Tensor[] params, {_SETTINGS}) -> (Tensor, Tensor)", _gru
)


class WeightDropLSTM(nn.LSTM):
    """Train an LSTM whose recurrent weights are masked anew for each batch; the plain LSTM in eval mode.

    The parameters are torch's own, by torch's names, and never written to: a state dict of `nn.LSTM` can be loaded.

    Args:
        p: The probability of dropping a recurrent weight, 0 ≤ p < 1.
    """

    def __init__(self, *args: Any, p: float = WeightDropped.p, **options: Any) -> None:
        super().__init__(*args, **options)
        self.p = WeightDropped(p).p

    def forward(self, input: Tensor, hx: State | None = None) -> tuple[Tensor, State]:  # type: ignore[override] # noqa: A002 # torch's own name; packed sequences are refused
        """Map sequences [B, steps, in], or [steps, B, in], to outputs and the final states, as `nn.LSTM` does."""
        states = [_initial(self, input, self.proj_size or self.hidden_size), _initial(self, input, self.hidden_size)]
        y, h, c = weight_drop_lstm(input, states if hx is None else list(hx), _parameters(self), *_settings(self))
        return y, (h, c)


class WeightDropGRU(nn.GRU):
    """Train a GRU whose recurrent weights are masked anew for each batch; the plain GRU in eval mode.

    The parameters are torch's own, by torch's names, and never written to: a state dict of `nn.GRU` can be loaded.

    Args:
        p: The probability of dropping a recurrent weight, 0 ≤ p < 1.
    """

    def __init__(self, *args: Any, p: float = WeightDropped.p, **options: Any) -> None:
        super().__init__(*args, **options)
        self.p = WeightDropped(p).p

    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:  # type: ignore[override] # noqa: A002 # torch's own name; packed sequences are refused
        """Map sequences [B, steps, in], or [steps, B, in], to outputs and the final state, as `nn.GRU` does."""
        state = _initial(self, input, self.hidden_size)
        y, h = weight_drop_gru(input, state if hx is None else hx, _parameters(self), *_settings(self))
        return y, h


def _initial(layer: WeightDropLSTM | WeightDropGRU, x: Tensor, width: int) -> Tensor:
    """Return the initial state [layers · directions, B, width] of zeros.

    Raises:
        ValueError: The input is no batch of sequences.
    """
    if not isinstance(x, Tensor) or x.dim() != 3:
        told = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{type(layer).__name__} takes padded sequences of three axes; it got {told}")
    rows = x.shape[0 if layer.batch_first else 1]
    return x.new_zeros(layer.num_layers * (2 if layer.bidirectional else 1), rows, width)


def _parameters(layer: WeightDropLSTM | WeightDropGRU) -> list[Tensor]:
    """Return the parameters in torch's order, by name: torch's own list of them would be exported as constants."""
    return [getattr(layer, name) for name in layer._flat_weights_names]


def _settings(layer: WeightDropLSTM | WeightDropGRU) -> tuple[Any, ...]:
    """Return the operators' arguments after the parameters, in their order."""
    own = layer.bias, layer.num_layers, float(layer.dropout), layer.training, layer.bidirectional, layer.batch_first
    return *own, layer.p
