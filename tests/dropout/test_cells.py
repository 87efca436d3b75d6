"""Recurrent layers with dropout in their steps: torch's own cells at rate 0, their papers' networks at others."""

from itertools import product
from typing import Any

import cells_by_hand
import numpy as np
import pytest
import torch
from laws import SIGMAS, correlation_of_pairs, variance_error
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from service.dropout import DropoutGRU, DropoutLSTM, RecurrentDropout, RNNDrop, Variant, VariationalRNN, Zoneout
from service.dropout.variant import CellVariant
from service.errors import InvalidPlan

ROWS, STEPS, INPUTS, UNITS = 20_000, 4, 3, 3
TORCHS = {DropoutLSTM: nn.LSTM, DropoutGRU: nn.GRU}
CASES: list[tuple[Any, CellVariant]] = [
    (layer, variant)
    for layer in TORCHS
    for variant in (
        VariationalRNN(0.3), VariationalRNN(0.3, 1), RNNDrop(0.3), RecurrentDropout(0.3), RecurrentDropout(0.3, 0),
        Zoneout(0.3, 0.2),
    )
    if (layer, type(variant)) != (DropoutGRU, RNNDrop)
]  # fmt: skip
OFF = (VariationalRNN(0), VariationalRNN(0, 1), RNNDrop(0), RecurrentDropout(0), Zoneout(0, 0))


def cells(variant: CellVariant) -> list[Any]:
    return [DropoutLSTM] if isinstance(variant, RNNDrop) else list(TORCHS)


def states_of(layer: Any, count: int, rows: int) -> Any:
    states = torch.randn(2, count, rows, UNITS).unbind()
    return states[0] if layer is DropoutGRU else states


def flat(result: Any) -> list[Tensor]:
    y, final = result
    return [y, *(final if isinstance(final, tuple) else (final,))]


def with_weights_of(torchs: nn.Module, layer: Any, *arguments: Any, **options: Any) -> Any:
    made = layer(*arguments, **options)
    made.load_state_dict(torchs.state_dict())
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layers", "batch_first", "bidirectional"), list(product((1, 2), (False, True), (False, True)))
)
def test_at_rate_zero_training_and_eval_are_torchs_own_layer(
    layers: int, batch_first: bool, bidirectional: bool, bias: bool
) -> None:
    options = (INPUTS, UNITS, layers, bias, batch_first)
    for variant, given in product(OFF, (False, True)):
        for layer in cells(variant):
            torchs = TORCHS[layer](*options, bidirectional=bidirectional)
            mine = with_weights_of(torchs, layer, *options, bidirectional, variant)
            x = torch.randn(5, STEPS, INPUTS) if batch_first else torch.randn(STEPS, 5, INPUTS)
            state = states_of(layer, layers * (1 + bidirectional), 5) if given else None
            for training in (True, False):
                for a, b in zip(flat(mine.train(training)(x, state)), flat(torchs(x, state)), strict=True):
                    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", [VariationalRNN(0.4), VariationalRNN(0.4, 1), RecurrentDropout(0.4)], ids=repr)
def test_variants_of_mean_one_are_torchs_own_layer_in_eval_mode(variant: CellVariant) -> None:
    for layer in cells(variant):
        torchs, x = TORCHS[layer](INPUTS, UNITS, 2), torch.randn(STEPS, 5, INPUTS)
        mine = with_weights_of(torchs, layer, INPUTS, UNITS, 2, variant=variant).eval()
        for a, b in zip(flat(mine(x)), flat(torchs(x)), strict=True):
            torch.testing.assert_close(a, b)


def in_training(layer: nn.Module, x: Tensor, rows: int = ROWS) -> Tensor:
    """Return the outputs of many equal rows, and their sum over steps, which sees what steps share [rows, …]."""
    with torch.no_grad():
        y = layer.train()(x.expand(rows, -1, -1))[0].double()
    return torch.cat([y.flatten(1), y.sum(1)], 1)


def by_hand(layer: Any, x: Tensor, variant: str, **own: float) -> Tensor:
    passes = np.broadcast_to(x.double().numpy(), (ROWS, *x.shape))
    y = torch.from_numpy(cells_by_hand.layers(np.random.default_rng(3), layer, passes, variant, **own))
    return torch.cat([y.flatten(1), y.sum(1)], 1)


def assert_same_moments(mine: Tensor, theirs: Tensor) -> None:
    mean_error = (mine.var(0) / len(mine) + theirs.var(0) / len(theirs)).sqrt()
    spread_error = (variance_error(mine).square() + variance_error(theirs).square()).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)).abs() <= SIGMAS * mean_error).all()
    assert ((mine.var(0) - theirs.var(0)).abs() <= SIGMAS * spread_error).all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("layer", "variant"), CASES, ids=repr)
def test_in_training_every_row_is_a_network_of_the_papers(
    layer: Any, variant: CellVariant, bidirectional: bool
) -> None:
    made = spread(layer(INPUTS, UNITS, batch_first=True, bidirectional=bidirectional, variant=variant))
    x = torch.randn(STEPS, INPUTS)
    mine = in_training(made, x)

    assert_same_moments(mine, by_hand(made, x, variant.name, **variant.parameters()))
    assert correlation_of_pairs(mine[1:], mine[:-1]).abs().max() <= SIGMAS / ROWS**0.5


def spread(layer: nn.Module) -> nn.Module:
    """Make weights large enough that every gate moves."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(2)
    return layer


@pytest.mark.parametrize(
    ("layer", "one", "other"),
    [
        (DropoutLSTM, RecurrentDropout(0.3), RecurrentDropout(0.3, 0)),
        (DropoutGRU, RecurrentDropout(0.3), RecurrentDropout(0.3, 0)),
        (DropoutLSTM, VariationalRNN(0.3), VariationalRNN(0.3, 1)),
        (DropoutLSTM, Zoneout(0.3, 0.0), Zoneout(0.3, 0.3)),
    ],
)
def test_the_comparison_above_tells_a_variants_settings_apart(layer: Any, one: Variant, other: CellVariant) -> None:
    made, x = spread(layer(INPUTS, UNITS, batch_first=True, variant=other)), torch.randn(STEPS, INPUTS)

    with pytest.raises(AssertionError):
        assert_same_moments(in_training(made, x), by_hand(made, x, one.name, **one.parameters()))


def test_rnn_drop_in_eval_mode_scales_every_cell_state_by_q() -> None:
    layer, x = DropoutLSTM(INPUTS, UNITS, batch_first=True, variant=RNNDrop(0.3)).eval(), torch.randn(5, STEPS, INPUTS)
    h = c = torch.zeros(5, UNITS)
    for t in range(STEPS):
        gates = x[:, t] @ layer.weight_ih_l0.T + layer.bias_ih_l0 + h @ layer.weight_hh_l0.T + layer.bias_hh_l0
        i, f, g, o = gates.chunk(4, -1)
        c = 0.7 * (f.sigmoid() * c + i.sigmoid() * g.tanh())
        h = o.sigmoid() * c.tanh()

    y, (last, memory) = layer(x)
    torch.testing.assert_close(y[:, -1], h)
    torch.testing.assert_close((last[0], memory[0]), (h, c))


def test_zoneout_in_eval_mode_mixes_old_and_new_by_its_rates() -> None:
    layer, x = DropoutLSTM(INPUTS, UNITS, batch_first=True, variant=Zoneout(0.3, 0.1)), torch.randn(5, STEPS, INPUTS)
    cell = nn.LSTMCell(INPUTS, UNITS)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    h = c = torch.zeros(5, UNITS)
    for t in range(STEPS):
        new_h, new_c = cell(x[:, t], (h, c))
        h, c = 0.1 * h + 0.9 * new_h, 0.3 * c + 0.7 * new_c

    y, (last, memory) = layer.eval()(x)
    torch.testing.assert_close(y[:, -1], h)
    torch.testing.assert_close((last[0], memory[0]), (h, c))


def test_a_grus_zoneout_in_eval_mode_has_one_rate() -> None:
    layer, x = DropoutGRU(INPUTS, UNITS, batch_first=True, variant=Zoneout(0.3)).eval(), torch.randn(5, STEPS, INPUTS)
    cell = nn.GRUCell(INPUTS, UNITS)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    h = torch.zeros(5, UNITS)
    for t in range(STEPS):
        h = 0.3 * h + 0.7 * cell(x[:, t], h)

    torch.testing.assert_close(layer(x)[1][0], h)


LENGTHS = torch.tensor([4, 1, 3, 2, 4])


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("variant", OFF, ids=repr)
def test_padded_rows_are_torchs_packed_sequences(variant: CellVariant, batch_first: bool) -> None:
    for layer in cells(variant):
        torchs = TORCHS[layer](INPUTS, UNITS, 2, batch_first=batch_first, bidirectional=True)
        mine = with_weights_of(torchs, layer, INPUTS, UNITS, 2, True, batch_first, True, variant)
        x = torch.randn(5, STEPS, INPUTS) if batch_first else torch.randn(STEPS, 5, INPUTS)
        state = states_of(layer, 4, 5)
        packed, final = torchs(pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False), state)
        expected = flat((pad_packed_sequence(packed, batch_first)[0], final))
        for training in (True, False):
            for a, b in zip(flat(mine.train(training)(x, state, LENGTHS)), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layer", "variant"), CASES, ids=repr)
def test_what_stands_in_the_padding_reaches_nothing(layer: Any, variant: CellVariant) -> None:
    made = layer(INPUTS, UNITS, 2, batch_first=True, bidirectional=True, variant=variant)
    x = torch.randn(5, STEPS, INPUTS)
    padded = torch.where(torch.arange(STEPS)[:, None] < LENGTHS[:, None, None], x, torch.nan)
    for training in (True, False):
        found = []
        for each in (x, padded):
            torch.manual_seed(3)
            found.append(flat(made.train(training)(each, lengths=LENGTHS)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(("layer", "variant"), CASES, ids=repr)
def test_gradients_of_a_training_step_are_finite_differences(layer: Any, variant: CellVariant) -> None:
    made = layer(2, 2, batch_first=True, bidirectional=True, variant=variant).double().train()
    names = list(made.state_dict())

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        torch.manual_seed(5)
        result = torch.func.functional_call(
            made, dict(zip(names, parameters, strict=True)), (x,), {"lengths": torch.tensor([2, 1])}
        )
        return torch.cat([each.flatten() for each in flat(result)])

    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(run, (x, *made.parameters()))


def test_either_layer_loads_the_others_weights_and_begins_like_it() -> None:
    for layer, torchs in TORCHS.items():
        torch.manual_seed(1)
        mine = layer(INPUTS, UNITS, 2, bidirectional=True)
        torch.manual_seed(1)
        theirs = torchs(INPUTS, UNITS, 2, bidirectional=True)
        assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in mine.state_dict().items())
        theirs.load_state_dict(mine.state_dict())
        assert mine.variant == VariationalRNN()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("layer", "variant"), CASES, ids=repr)
def test_an_exported_layer_is_one_random_node_that_holds_its_variant(
    layer: Any, variant: CellVariant, training: bool
) -> None:
    module = layer(INPUTS, UNITS, batch_first=True, variant=variant).train(training)
    with torch.no_grad():
        program = torch.export.export(module, (torch.randn(4, STEPS, INPUTS),))
    (node,) = (node for node in program.graph.nodes if "thinnet" in str(node.target))
    values = dict(zip((argument.name for argument in node.target._schema.arguments), node.args, strict=False))

    assert torch.Tag.nondeterministic_seeded in node.target.tags
    assert values["variant"] == variant.name
    assert type(variant)(*values["settings"]) == variant
    assert values["train"] is training


@pytest.mark.parametrize(
    ("layer", "variant"),
    [
        (DropoutLSTM, RNNDrop(0.2)),
        (DropoutLSTM, Zoneout(0.2)),
        (DropoutGRU, VariationalRNN(0.2)),
        (DropoutGRU, RecurrentDropout(0.2)),
    ],
    ids=repr,
)
def test_a_layer_learns_to_read_digits_row_by_row(layer: Any, variant: CellVariant) -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images - 5, dtype=torch.float32) / 6, torch.tensor(digits.target)
    rnn, head = layer(8, 48, batch_first=True, variant=variant), nn.Linear(48, 10)
    optimizer = torch.optim.Adam([*rnn.parameters(), *head.parameters()], 0.02)
    for rows in torch.arange(1400).repeat(12).split(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(rnn(x[rows])[0][:, -1]), y[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        answers = head(rnn.eval()(x[1400:])[0][:, -1]).argmax(-1)

    assert (answers == y[1400:]).double().mean() > 0.75


def test_what_is_no_layer_is_refused() -> None:
    with pytest.raises(InvalidPlan, match=r"^DropoutGRU: 'zoneout' does not act in its cells$"):
        DropoutGRU(INPUTS, UNITS, variant=Zoneout(0.0, 0.2))
    with pytest.raises(ValueError, match=r"lengths have the shape \(5, 1\); give one for each row"):
        DropoutLSTM(INPUTS, UNITS)(torch.randn(STEPS, 5, INPUTS), lengths=LENGTHS[:, None])
    with pytest.raises(InvalidPlan, match=r"^DropoutGRU: 'rnn-drop' does not act in its cells$"):
        DropoutGRU(INPUTS, UNITS, variant=RNNDrop())
    with pytest.raises(ValueError, match=r"DropoutLSTM of 3 inputs got the shape \(4, 3\); give rows and steps"):
        DropoutLSTM(INPUTS, UNITS)(torch.randn(4, 3))
    with pytest.raises(InvalidPlan, match=r"per_gate = 0\.5 is no choice; give 0 \(tied\) or 1"):
        VariationalRNN(0.3, 0.5)
    with pytest.raises(InvalidPlan, match=r"per_step = 2 is no choice; give 1 \(each step\) or 0"):
        RecurrentDropout(0.3, 2)
    for p_h in (-0.1, 1.0, float("nan")):
        with pytest.raises(InvalidPlan, match=r"p_h = .* is not a probability of keeping back; give 0 <= p_h < 1"):
            Zoneout(0.3, p_h)


def test_zoneout_of_the_output_alone_is_active() -> None:
    assert Zoneout(0.0, 0.1).active
    assert not Zoneout(0.0, 0.0).active
