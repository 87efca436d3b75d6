"""Dropout in the steps of stock and of our own recurrent layers, against loops written by hand."""

import functools
from typing import Any

import cells_by_hand
import numpy as np
import pytest
import torch
from memory import peak_bytes
from specimen import WIDTH, sequence
from torch import Tensor, nn
from zoo_recurrent import FinalStates, StateIn, with_states

from service import Predictor
from service.dropout import (
    BY_NAME,
    DropoutGRU,
    DropoutLSTM,
    RecurrentDropout,
    RNNDrop,
    VariationalRNN,
    Zoneout,
)
from service.errors import CaptureFailed, InvalidPlan
from service.graph.rates import TYPICAL, assumed
from service.plan import make_plan

PASSES = 6000
SETTINGS: dict[str, dict[str, float]] = {
    "variational-rnn": {"p": 0.3},
    "variational-rnn, untied": {"p": 0.3, "per_gate": 1},
    "rnn-drop": {"p": 0.3},
    "recurrent-dropout": {"p": 0.3},
    "recurrent-dropout, sequence": {"p": 0.3, "per_step": 0},
    "zoneout": {"p": 0.3, "p_h": 0.2},
}
STACKS: dict[str, dict[str, Any]] = {
    "one layer": {"batch_first": True},
    "two layers, both directions": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "no biases": {"batch_first": True, "bias": False},
}


class Outputs(nn.Module):
    """A layer's outputs at every step."""

    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = cell(WIDTH, 5, **options)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


def names(predictor: Predictor) -> list[str]:
    return [site.name for site in predictor.sites if site.kind == "cell"]


def samples(predictor: Predictor, inputs: tuple[Tensor, ...], **plan: Any) -> Tensor:
    """Return the passes of the one row's outputs and their sum over steps [S, …]."""
    y = predictor.predict(inputs, passes=PASSES, quantities=["samples"], **plan).outputs["output"]["samples"][0]
    return with_sums(y.double())


def with_sums(y: Tensor) -> Tensor:
    return torch.cat([y.flatten(1), y.sum(1)], 1)


def by_hand(rnn: Any, x: Tensor, name: str, **own: float) -> Tensor:
    passes = np.broadcast_to(x.double().numpy(), (PASSES, *x.shape[1:]))
    return with_sums(torch.from_numpy(cells_by_hand.layers(np.random.default_rng(8), rnn, passes, name, **own)))


def assert_same_moments(mine: Tensor, theirs: Tensor) -> None:
    def spread_error(y: Tensor) -> Tensor:
        fourth = (y - y.mean(0)).pow(4).mean(0)
        return ((fourth - y.var(0).square()) / len(y)).clamp_min(0)

    mean_error = ((mine.var(0) + theirs.var(0)) / PASSES).sqrt()
    assert ((mine.mean(0) - theirs.mean(0)).abs() <= 5 * mean_error).all()
    assert ((mine.var(0) - theirs.var(0)).abs() <= 5 * (spread_error(mine) + spread_error(theirs)).sqrt()).all()


def cases(*layers: Any) -> list[tuple[Any, str]]:
    """Return every layer with every setting; a GRU has no cell state to drop."""
    return [
        (layer, setting)
        for layer in layers
        for setting in SETTINGS
        if setting != "rnn-drop" or layer in (nn.LSTM, DropoutLSTM)
    ]


@functools.cache
def stock(cell: Any, stack: str) -> tuple[Outputs, Predictor]:
    network = Outputs(cell, **STACKS[stack]).eval()
    return network, Predictor.capture(network, sequence(1))


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize(("cell", "setting"), cases(nn.LSTM, nn.GRU))
def test_dropout_asked_of_a_stock_layer_is_the_papers_written_by_hand(cell: Any, setting: str, stack: str) -> None:
    (network, predictor), inputs, name = stock(cell, stack), sequence(1), setting.split(",")[0]
    sites: Any = {site: {"variant": name, **SETTINGS[setting]} for site in names(predictor)}
    theirs = by_hand(network.rnn, inputs[0], name, **SETTINGS[setting])

    for scope in ("pass", "row"):
        assert_same_moments(samples(predictor, inputs, variant="off", sites=sites, scope=scope), theirs)


@pytest.mark.parametrize(("cell", "setting"), cases(DropoutLSTM, DropoutGRU))
def test_a_trained_layer_serves_its_own_dropout(cell: Any, setting: str) -> None:
    name, own = setting.split(",")[0], SETTINGS[setting]
    variant = BY_NAME[name](**own)
    network, inputs = Outputs(cell, batch_first=True, num_layers=2, variant=variant).eval(), sequence(1)
    predictor = Predictor.capture(network, inputs)
    sites = [site for site in predictor.sites if site.kind == "cell"]

    assert [(site.name, site.variant, site.p) for site in sites] == [
        ("rnn.cell_0", name, 0.3),
        ("rnn.cell_1", name, 0.3),
    ]
    assert make_plan(predictor.sites) == {site.name: variant for site in sites}
    assert_same_moments(samples(predictor, inputs), by_hand(network.rnn, inputs[0], name, **own))


def test_a_trained_layers_settings_stand_in_its_site() -> None:
    for variant, extras in (
        (VariationalRNN(0.2, 1), {"per_gate": 1.0}),
        (RNNDrop(0.2), {}),
        (RecurrentDropout(0.2, 0), {"per_step": 0.0}),
        (Zoneout(0.2, 0.1), {"p_h": 0.1}),
    ):
        predictor = Predictor.capture(Outputs(DropoutLSTM, batch_first=True, variant=variant).eval(), sequence(2))
        (site,) = (each for each in predictor.sites if each.kind == "cell")
        assert (site.variant, site.p, dict(site.parameters)) == (variant.name, 0.2, extras)
        changed = make_plan(predictor.sites, overrides={site.name: 0.3})
        assert changed == {site.name: type(variant)(p=0.3, **extras)}


def test_another_variant_takes_a_trained_layer_with_its_own_default() -> None:
    network = Outputs(DropoutLSTM, batch_first=True, variant=Zoneout(0.3, 0.2)).eval()
    predictor, inputs = Predictor.capture(network, sequence(2)), sequence(1)
    found = samples(predictor, inputs, variant="variational-rnn", p=0.2)

    assert_same_moments(found, by_hand(network.rnn, inputs[0], "variational-rnn", p=0.2))


def test_every_layer_of_an_lstm_or_a_gru_is_one_site_and_no_other_cell_is() -> None:
    shapes = {"cell.cell_0": (4, 2, 3, WIDTH, 5), "cell.cell_1": (4, 2, 3, 10, 5)}
    both = Predictor.capture(FinalStates(nn.GRU).eval(), sequence(2))
    projected = Predictor.capture(FinalStates(nn.LSTM, proj_size=2).eval(), sequence(2))
    vanilla = Predictor.capture(Outputs(nn.RNN, batch_first=True, num_layers=2, dropout=0.1).eval(), sequence(2))

    assert {site.name: site.shape for site in both.sites if site.kind == "cell"} == shapes
    assert not any(site.is_trained for site in both.sites if site.kind == "cell")
    assert names(projected) == names(vanilla) == []


class Last(nn.Module):
    """The last of a recurrent layer's outputs."""

    def forward(self, layer: tuple[Tensor, Any]) -> Tensor:
        return layer[0][:, -1]


class Twice(nn.Module):
    """One layer on two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(self.rnn(x)[0])[0]


def test_a_layer_called_twice_is_two_sites_with_noise_of_their_own() -> None:
    predictor, inputs = Predictor.capture(Twice().eval(), sequence(2)), sequence(1)
    first, second = (
        predictor.predict(inputs, passes=3, variant="off", sites={name: "zoneout"}, quantities=["samples"])
        for name in names(predictor)
    )

    assert names(predictor) == ["rnn.cell_0", "rnn.cell_0#2"]
    assert not torch.equal(first["samples"], second["samples"])


@pytest.mark.parametrize("variant", ["variational-rnn", "zoneout"])
def test_a_states_rows_are_folded_with_the_inputs(variant: str) -> None:
    predictor = Predictor.capture(StateIn().eval(), with_states(2))

    assert predictor.mode(variant=variant) == predictor.mode("row", variant=variant) == "folded"


def test_a_layer_that_is_off_stays_torchs_own() -> None:
    predictor = Predictor.capture(nn.Sequential(Twice(), nn.Dropout(0.3)).eval(), sequence(2))
    trunk = predictor.compile(make_plan(predictor.sites))._split.trunk

    assert [str(node.target) for node in trunk.graph.nodes if "gru" in str(node.target)] == ["aten.gru.input"] * 2


def test_products_with_the_inputs_are_computed_once_where_no_noise_reaches_them() -> None:
    predictor = Predictor.capture(Outputs(nn.LSTM, batch_first=True).eval(), sequence(2))
    for variant, expected in (("zoneout", 1), ("rnn-drop", 1), ("recurrent-dropout", 1), ("variational-rnn", 0)):
        split = predictor.compile(make_plan(predictor.sites, variant))._split
        found = [node for node in split.trunk.graph.nodes if "project_inputs" in node.name]
        assert len(found) == expected
        assert [boundary.shared for boundary in split.boundaries if boundary.layout.is_tensor] == [True]


@pytest.mark.parametrize("scope", ["pass", "row"])
@pytest.mark.parametrize("variant", ["variational-rnn", "zoneout"])
@pytest.mark.parametrize("cell", [nn.LSTM, nn.GRU])
def test_the_memory_of_steps_stays_below_the_ceiling(cell: Any, variant: str, scope: str) -> None:
    network, x = nn.Sequential(cell(16, 64, batch_first=True), Last()).eval(), torch.randn(64, 16, 16)
    predictor, ceiling = Predictor.capture(network, x[:2]), 9 << 19
    asked = {"variant": variant, "scope": scope, "passes": 8}
    predictor.predict(x[:2], **asked)  # its checks at first use are not the request's

    with assumed(TYPICAL):  # a small cache would keep passes apart anyway
        assert peak_bytes(lambda: predictor.predict(x, **asked)) > ceiling
        assert peak_bytes(lambda: predictor.predict(x, memory_bytes=ceiling, **asked)) <= ceiling


class Sentences(nn.Module):
    """Several sequences for each row, folded into the batch."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        y = self.rnn(x.reshape(-1, 2, WIDTH))[0]
        return y.reshape(x.shape[0], -1)


def test_several_sequences_for_a_row_are_no_site_and_are_refused_where_they_were_trained() -> None:
    stock = Predictor.capture(Sentences(nn.LSTM(WIDTH, 5, batch_first=True)).eval(), sequence(2))

    assert names(stock) == []
    with pytest.raises(CaptureFailed, match=r"module 'rnn': it takes several .*give it one sequence for each row"):
        Predictor.capture(Sentences(DropoutLSTM(WIDTH, 5, batch_first=True)).eval(), sequence(2))


def test_an_outputs_rate_alone_is_served_as_trained() -> None:
    network = Outputs(DropoutLSTM, batch_first=True, variant=Zoneout(0.0, 0.2)).eval()
    predictor, inputs = Predictor.capture(network, sequence(2)), sequence(1)
    theirs = by_hand(network.rnn, inputs[0], "zoneout", p=0.0, p_h=0.2)

    assert make_plan(predictor.sites) == {"rnn.cell_0": Zoneout(0.0, 0.2)}
    assert_same_moments(samples(predictor, inputs), theirs)


def test_a_grus_zoneout_at_rate_zero_is_refused_rather_than_a_variance_of_zero() -> None:
    predictor = Predictor.capture(Outputs(nn.GRU, batch_first=True).eval(), sequence(2))

    with pytest.raises(InvalidPlan, match=r"'zoneout' does not fit site 'rnn\.cell_0'"):
        predictor.predict(sequence(2), passes=2, variant="zoneout", p=0)


@pytest.mark.parametrize("layer", [nn.LSTM, DropoutLSTM])
@pytest.mark.parametrize("variant", ["variational-rnn", "zoneout"])
@pytest.mark.parametrize(
    ("weights", "modes"), [("shakeout", ("vmapped", "rows vmapped")), ("dropconnect", ("folded", "folded"))]
)
def test_steps_beside_masked_weights_are_vectorised_over_passes(
    layer: Any, variant: str, weights: str, modes: tuple[str, str]
) -> None:
    """Only packed masks can be folded into the rows; what runs is compared with the whole graph, pass by pass."""
    network = nn.Sequential(Outputs(layer, batch_first=True, bidirectional=True), nn.Linear(10, 3)).eval()
    predictor = Predictor.capture(network, sequence(2))
    plan: Any = {"variant": "off", "overrides": {"0.rnn.cell_0": variant, "1.weight": weights}}
    compiled = predictor.compile(make_plan(predictor.sites, **plan))

    assert (compiled.mode(False), compiled.mode(True)) == modes


def test_what_does_not_fit_a_cell_is_refused_with_what_does() -> None:
    predictor = Predictor.capture(Outputs(nn.GRU, batch_first=True).eval(), sequence(2))

    with pytest.raises(InvalidPlan, match=r"rnn\.cell_0 \(variational-rnn, recurrent-dropout, zoneout\)"):
        predictor.predict(sequence(2), passes=2, variant="rnn-drop")
    with pytest.raises(InvalidPlan, match=r"site 'rnn.cell_0': variational-rnn: per_gate = 2.0 is no choice"):
        predictor.predict(sequence(2), passes=2, sites={"rnn.cell_0": {"variant": "variational-rnn", "per_gate": 2}})
    assert predictor.fitting("rnn.cell_0") == ("variational-rnn", "recurrent-dropout", "zoneout")
