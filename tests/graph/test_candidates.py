"""Places that were never random in training: which they are, what they are called, and that noise there is right."""

import copy
from collections.abc import Callable

import pytest
import torch
from modes import compare_modes
from moments import assert_same_moments
from specimen import Block, Specimen
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.dropout import Kind
from service.graph.compiled import Compiled
from service.plan import fitting, make_plan

CANDIDATES = (Kind.HIDDEN, Kind.SELU, Kind.INPUT, Kind.ADDITION)


def residual_network() -> nn.Sequential:
    torch.manual_seed(3)
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), Block(4, 4), Block(4, 8, 2), *head).eval()


class Written(nn.Module):
    """A module from a function of its input and three 6x6 linear layers."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def candidates(module: nn.Module, *shape: int) -> dict[str, Kind]:
    predictor = Predictor.capture(module.eval(), torch.randn(2, *shape))
    return {site.name: site.kind for site in predictor.sites if site.kind in CANDIDATES}


def test_inputs_activations_and_residual_branches_are_sites() -> None:
    assert candidates(residual_network(), 1, 8, 8) == {
        "input": Kind.INPUT,
        "1": Kind.HIDDEN,
        "2.relu": Kind.HIDDEN,
        "2.branch": Kind.ADDITION,
        "2.relu#2": Kind.HIDDEN,
        "3.relu": Kind.HIDDEN,
        "3.branch": Kind.ADDITION,
        "3.relu#2": Kind.HIDDEN,
    }


@pytest.mark.parametrize(
    ("activation", "name", "kind"),
    [
        (nn.ReLU(), "1", Kind.HIDDEN), (nn.ReLU6(), "1", Kind.HIDDEN), (nn.GELU("tanh"), "1", Kind.HIDDEN),
        (nn.SiLU(inplace=True), "1", Kind.HIDDEN), (nn.Tanh(), "1", Kind.HIDDEN), (nn.PReLU(), "1", Kind.HIDDEN),
        (nn.SELU(), "1", Kind.SELU),
    ],
)  # fmt: skip
def test_an_activation_is_named_after_its_module(activation: nn.Module, name: str, kind: Kind) -> None:
    found = candidates(nn.Sequential(nn.Linear(6, 6), activation, nn.Linear(6, 2)), 6)

    assert found == {"input": Kind.INPUT, name: kind}


def test_a_function_in_a_module_is_named_after_both() -> None:
    twice = Written(lambda m, x: m.third(F.relu(m.second(F.relu(m.first(x))))))

    assert list(candidates(twice, 6)) == ["input", "relu", "relu#2"]


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.second(m.first(x) * torch.sigmoid(x)),  # a gate
        lambda m, x: torch.sigmoid(m.second(m.first(x))),  # the output
        lambda m, x: m.second(0.5 * m.first(x) * (1 + torch.tanh(m.first(x)))),  # an activation written out
        lambda m, x: m.third(m.first(x) + m.second(x)),  # two branches, neither a shortcut
        lambda m, x: m.second(m.first(x) + x.mean(1, keepdim=True)),  # a shift of every entry
        lambda m, x: m.second(m.first(x) + m.first.bias),  # a bias
        lambda m, x: m.third(m.first(x).sigmoid() * x + m.first(x).tanh() * m.second(x).sigmoid()),  # a gated cell
    ],
    ids=["gate", "output", "written-out", "two-branches", "shift", "bias", "cell"],
)
def test_what_is_no_hidden_layer_and_no_residual_block_is_no_site(function: Callable[..., Tensor]) -> None:
    assert candidates(Written(function), 6) == {"input": Kind.INPUT}


def test_a_place_that_has_a_site_gets_no_second_one() -> None:
    dropped = nn.Sequential(nn.Dropout(0.1), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 2))

    assert candidates(dropped, 6) == {}


def test_a_stock_encoder_without_dropout_has_its_branches() -> None:
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)

    assert list(candidates(nn.TransformerEncoder(layer, 1), 4, 6)) == [
        "input", "layers.0.branch", "layers.0.branch#2",
    ]  # fmt: skip


def test_a_variant_goes_to_the_inputs_only_if_nothing_inside_fits() -> None:
    predictor = Predictor.capture(residual_network(), torch.randn(2, 1, 8, 8))

    assert "input" not in make_plan(predictor.sites, "bernoulli")
    assert "input" in make_plan(predictor.sites, "off", None, {"input": "gaussian"})


def test_noise_at_candidates_runs_alike_in_every_way(specimen: Specimen, predictor: Predictor) -> None:
    found = [site for site in predictor.sites if site.variant is None and site.kind in CANDIDATES]
    if not found:
        return
    plan = make_plan(predictor.sites, "off", 0.3, {site.name: fitting(site)[0] for site in found})

    compare_modes(Compiled(predictor._captured, plan), predictor._captured, specimen.inputs(4))


def test_every_candidate_of_a_residual_network_is_a_loop_written_by_hand() -> None:
    network = residual_network()
    x = torch.randn(1, 1, 8, 8)
    predictor = Predictor.capture(network, x)

    def by_hand(x: Tensor) -> Tensor:
        stem, activation, first, second, *head = copy.deepcopy(network)
        h = F.dropout(activation(stem(F.dropout(x, 0.1))), 0.2)
        for block, dropped in ((first, 0.3), (second, 0.5)):
            inner = F.dropout2d(F.relu(block.bn1(block.conv1(h))), dropped)
            branch = block.bn2(block.conv2(inner)) * (torch.rand(len(h), 1, 1, 1) > dropped) / (1 - dropped)
            h = F.relu(block.shortcut(h) + branch)
        result: Tensor = nn.Sequential(*head)(h)
        return result

    sites: dict[str, object] = {"input": {"variant": "bernoulli", "p": 0.1}, "1": {"variant": "bernoulli", "p": 0.2}}
    for block, p in (("2", 0.3), ("3", 0.5)):
        sites |= {f"{block}.relu": {"variant": "spatial", "p": p}, f"{block}.branch": {"variant": "drop-path", "p": p}}
    mine = predictor.predict(x, passes=10_000, variant="off", sites=sites)  # type: ignore[arg-type] # overrides
    with torch.no_grad():
        theirs = by_hand(x.expand(10_000, -1, -1, -1))

    assert_same_moments(mine.mean[0], mine.variance[0], theirs)
