"""Locked masks and dropped recurrent weights, on stock layers and as trained, against cells written by hand."""

import copy
from typing import Any

import pytest
import torch
from moments import assert_same_moments
from specimen import WIDTH, sequence
from test_weight_variants import PASSES, noises, samples
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout import LockedDropout, WeightDropGRU, WeightDropLSTM
from service.errors import CaptureFailed, InvalidPlan

UNITS = 5


class Outputs(nn.Module):
    """A recurrent layer's outputs, rows in front."""

    def __init__(self, cell: nn.RNNBase) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0] if self.cell.batch_first else self.cell(x.transpose(0, 1))[0].transpose(0, 1)


def step(kind: str, x: Tensor, u: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Return h and c after one step, given the input's and the state's parts of all gates."""
    if kind == "LSTM":
        i, f, g, o = (x + u).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    if kind == "GRU":
        (xr, xz, xn), (ur, uz, un) = x.chunk(3, -1), u.chunk(3, -1)
        z = (xz + uz).sigmoid()
        return (1 - z) * (xn + (xr + ur).sigmoid() * un).tanh() + z * h, c
    return (x + u).tanh(), c


def direction(cell: nn.RNNBase, x: Tensor, name: str, mask: Tensor) -> Tensor:
    """Return one layer's outputs [B, T, units] in one direction, its recurrent weight times a mask."""
    of = {each: value.detach() for each, value in cell.named_parameters()}
    zero = torch.zeros(UNITS)
    h = c = torch.zeros(len(x), UNITS)
    steps = []
    backward = name.endswith("reverse")
    for t in reversed(range(x.shape[1])) if backward else range(x.shape[1]):
        given = F.linear(x[:, t], of[f"weight_ih_{name}"], of.get(f"bias_ih_{name}", zero.new_zeros(())))
        recurrent = F.linear(h, of[f"weight_hh_{name}"] * mask, of.get(f"bias_hh_{name}", zero.new_zeros(())))
        h, c = step(cell.mode.removesuffix("_TANH"), given, recurrent, h, c)
        steps.append(h)
    return torch.stack(steps[::-1] if backward else steps, 1)


def by_hand(cell: nn.RNNBase, x: Tensor, masks: dict[str, Tensor], locked: Tensor | None = None) -> Tensor:
    """Return the stack's outputs under masks by the recurrent weights' names, and between the layers."""
    for layer in range(cell.num_layers):
        names = [f"l{layer}", *[f"l{layer}_reverse"] * cell.bidirectional]
        one = torch.ones(())
        x = torch.cat([direction(cell, x, name, masks.get(f"cell.weight_hh_{name}", one)) for name in names], -1)
        if locked is not None and layer + 1 < cell.num_layers:
            x = x * locked
    return x


STACKS: dict[str, nn.RNNBase] = {
    "lstm": nn.LSTM(WIDTH, UNITS, 2, batch_first=True),
    "lstm, batch on axis 1": nn.LSTM(WIDTH, UNITS, 2),
    "gru, both ways": nn.GRU(WIDTH, UNITS, 2, batch_first=True, bidirectional=True),
    "rnn without biases": nn.RNN(WIDTH, UNITS, 1, bias=False, batch_first=True),
}


@pytest.mark.parametrize("name", STACKS)
def test_every_recurrent_weight_has_one_mask_for_all_steps_and_rows(name: str) -> None:
    network, inputs = Outputs(STACKS[name]).eval(), sequence(3)
    predictor = Predictor.capture(network, inputs)
    drawn = noises(predictor, inputs, "weight-dropped")
    sites = [site for site in predictor.sites if site.kind == "recurrent weight"]
    expected = [
        by_hand(network.cell, inputs[0], {site.name: noise[index] for site, noise in zip(sites, drawn, strict=True)})
        for index in range(PASSES)
    ]

    assert {site.name for site in sites} == {each for each, _ in network.named_parameters() if "weight_hh" in each}
    torch.testing.assert_close(samples(predictor, inputs, "weight-dropped"), torch.stack(expected))


@pytest.mark.parametrize("name", ["lstm", "lstm, batch on axis 1", "gru, both ways"])
def test_between_stock_layers_a_locked_mask_is_the_same_at_every_step(name: str) -> None:
    network, inputs = Outputs(STACKS[name]).eval(), sequence(3)
    predictor = Predictor.capture(network, inputs)
    (masks,) = noises(predictor, inputs, "locked", {site.name: "off" for site in predictor.sites[1:]})
    expected = [by_hand(network.cell, inputs[0], {}, mask) for mask in masks]

    assert masks.shape[1] == 1
    asked = {"variant": "locked", "sites": {site.name: "off" for site in predictor.sites[1:]}, "passes": PASSES}
    found = predictor.predict(inputs, **asked, seed=0, quantities=["samples"]).outputs["output"]["samples"]
    torch.testing.assert_close(found.transpose(0, 1), torch.stack(expected))


@pytest.mark.parametrize("variant", ["locked", "weight-dropped"])
def test_its_mean_and_variance_on_stock_layers_are_a_hand_written_loops(variant: str) -> None:
    cell, inputs = STACKS["lstm"], sequence(1)
    torch.manual_seed(5)
    by_loop = []
    for _ in range(2000):
        locked = (torch.rand(UNITS) >= 0.3) / 0.7 if variant == "locked" else None
        names = ("cell.weight_hh_l0", "cell.weight_hh_l1") if locked is None else ()
        masks = {name: (torch.rand(4 * UNITS, UNITS) >= 0.3) / 0.7 for name in names}
        by_loop.append(by_hand(cell, inputs[0], masks, locked)[0])
    predictor = Predictor.capture(Outputs(cell).eval(), sequence(2))
    found = predictor.predict(inputs, variant=variant, p=0.3, passes=2000)
    first = 0 if variant == "locked" else 1  # before the first step there is no state that weights could act on
    assert_same_moments(found.mean[0, first:], found.variance[0, first:], torch.stack(by_loop)[:, first:])


def test_steps_that_are_noisy_themselves_take_the_masked_weights_too() -> None:
    """Zoneout that all but never happens leaves nothing but the dropped weights."""
    network, inputs = Outputs(nn.LSTM(WIDTH, UNITS, batch_first=True)).eval(), sequence(3)
    predictor = Predictor.capture(network, inputs)
    never = {"variant": "zoneout", "p": 1e-9, "p_h": 1e-9}
    asked = {"variant": "weight-dropped", "p": 0.5, "passes": PASSES, "quantities": ["samples"]}
    alone = predictor.predict(inputs, **asked).outputs["output"]["samples"]
    both = predictor.predict(inputs, **asked, sites={"cell.cell_0": never}).outputs["output"]["samples"]

    assert (alone.var(1) > 0).any()
    torch.testing.assert_close(both, alone)


def test_nothing_but_its_own_variant_fits_a_recurrent_weight() -> None:
    predictor = Predictor.capture(Outputs(STACKS["lstm"]).eval(), sequence(2))

    assert predictor.fitting("cell.weight_hh_l0") == ("weight-dropped",)
    assert "weight-dropped" not in predictor.fitting("cell.layer_0")
    with pytest.raises(InvalidPlan, match=r"variant 'dropconnect' does not fit site 'cell.weight_hh_l0'"):
        predictor.predict(sequence(2), sites={"cell.weight_hh_l0": "dropconnect"})


TRAINED: dict[type[nn.RNNBase], type[nn.RNNBase]] = {WeightDropLSTM: nn.LSTM, WeightDropGRU: nn.GRU}


@pytest.mark.parametrize("layer", TRAINED)
def test_a_weight_dropped_layer_is_served_as_trained_with_the_dropout_between_its_layers(layer: Any) -> None:
    network = Outputs(layer(WIDTH, UNITS, 2, dropout=0.2, batch_first=True, p=0.3))
    plain = Outputs(TRAINED[layer](WIDTH, UNITS, 2, dropout=0.2, batch_first=True))
    plain.load_state_dict(network.state_dict())
    predictor = Predictor.capture(network.eval(), sequence(2))
    inputs = sequence(3)

    assert [(site.name, site.variant, site.p) for site in predictor.sites if site.is_trained] == [
        ("cell.layer_0", "bernoulli", 0.2),
        ("cell.weight_hh_l0", "weight-dropped", 0.3),
        ("cell.weight_hh_l1", "weight-dropped", 0.3),
    ]
    stock = Predictor.capture(plain.eval(), sequence(2))
    asked = {"variant": "weight-dropped", "p": 0.3}
    torch.testing.assert_close(
        predictor.predict(inputs, **asked, passes=8).mean, stock.predict(inputs, **asked, passes=8).mean
    )


@pytest.mark.parametrize("layer", TRAINED)
def test_serving_leaves_the_recurrent_weights_as_they_are(layer: Any) -> None:
    network = Outputs(layer(WIDTH, UNITS, 2, batch_first=True, p=0.5)).eval()
    before = copy.deepcopy(network.state_dict())
    predictor = Predictor.capture(network, sequence(2))
    inputs = sequence(2)
    with torch.no_grad():
        plain = network(inputs[0])
    for _ in range(2):
        found = predictor.predict(inputs, passes=4, quantities=["deterministic"]).outputs["output"]["deterministic"]
        torch.testing.assert_close(found, plain)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


class Misplaced(nn.Module):
    """Rows in front, and a layer that takes them to be on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = LockedDropout(0.3, batch_first=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


def test_steps_taken_for_rows_are_refused() -> None:
    with pytest.raises(CaptureFailed, match="so steps would have masks of their own; give it batch_first=True"):
        Predictor.capture(Misplaced().eval(), sequence(2))


def test_recurrent_weights_that_two_layers_train_otherwise_are_refused() -> None:
    first, second = (WeightDropGRU(UNITS, UNITS, batch_first=True, p=p) for p in (0.2, 0.3))
    second.weight_hh_l0 = first.weight_hh_l0
    network = nn.Sequential(Outputs(first), Outputs(second)).eval()

    with pytest.raises(CaptureFailed, match="its weights are trained otherwise elsewhere; give both one dropout"):
        Predictor.capture(network, (torch.randn(2, 4, UNITS),))


@pytest.mark.parametrize("shape", [(WIDTH,), (4, WIDTH), (2, 3, 4, WIDTH)])
def test_locked_dropout_stands_at_sequences_only(shape: tuple[int, ...]) -> None:
    predictor = Predictor.capture(nn.Sequential(nn.Dropout(0.3)).eval(), torch.randn(2, *shape))

    assert ("locked" in predictor.fitting("0")) is (len(shape) == 2)
