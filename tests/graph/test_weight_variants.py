"""Weight variants on stock layers against hand-written modules, pass by pass, and where they are refused."""

import pytest
import torch
from specimen import WIDTH, features, image, sequence, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_weights import LinearTwice, RawParameter, TiedWeights

from service import Predictor
from service.dropout import (
    BY_NAME,
    DropConnectLinear,
    ShakeoutLinear,
    TargetedLinear,
    VariationalLinear,
    WordDropoutEmbedding,
)
from service.errors import CaptureFailed, InvalidPlan
from service.graph.compiled import Compiled
from service.graph.drawing import Draw, draw_noises
from service.plan import Override, make_plan

PASSES = 5
Inputs = tuple[Tensor, ...]


def noises(
    predictor: Predictor, inputs: Inputs, variant: str, sites: dict[str, Override] | None = None
) -> list[Tensor]:
    """Return each active site's noise [S, …] for seed 0."""
    captured = predictor._captured
    compiled = Compiled(captured, make_plan(predictor.sites, variant, None, sites))
    shapes, draw = [tuple(each.shape) for each in inputs], Draw(0, 0, PASSES, None)
    drawn = draw_noises(compiled._rewritten.noises, captured.symbols, shapes, draw, torch.device("cpu"))
    return [noise[:, 0] for noise in drawn]


def samples(predictor: Predictor, inputs: Inputs, variant: str, sites: dict[str, Override] | None = None) -> Tensor:
    """Return the passes of the only output [S, B, …]."""
    asked = {"variant": variant, "sites": sites, "passes": PASSES, "seed": 0, "quantities": ["samples"]}
    return predictor.predict(inputs, **asked).outputs["output"]["samples"].transpose(0, 1)


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3, padding=1), sequence),
    "2d": (nn.Conv2d(1, 4, 3, stride=2, padding=1), image),
    "2d in groups": (nn.Conv2d(1, 1, 3, groups=1, padding="same", dilation=2), image),
    "2d without bias": (nn.Conv2d(1, 3, 2, bias=False), image),
    "3d": (nn.Conv3d(1, 2, 2), lambda rows: (torch.randn(rows, 1, 3, 4, 4),)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_dropconnect_masks_every_weight_and_bias_of_a_convolution(name: str) -> None:
    network, make = CONVOLUTIONS[name]
    inputs = make(3)
    predictor = Predictor.capture(network.eval(), inputs)
    by_hand = []
    for mask in noises(predictor, inputs, "dropconnect")[0]:
        inside = network.weight[0].numel()
        state = {"weight": network.weight * mask[:, :inside].reshape(network.weight.shape)}
        if network.bias is not None:
            state["bias"] = network.bias * mask[:, inside]
        by_hand.append(torch.func.functional_call(network, state, inputs))

    assert [(site.name, site.kind) for site in predictor.sites] == [("weight", "convolution"), ("input", "input")]
    torch.testing.assert_close(samples(predictor, inputs, "dropconnect"), torch.stack(by_hand))


class ConvolutionTwice(nn.Module):
    """One convolution used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(torch.relu(self.a(x)))


def test_a_convolution_used_twice_has_one_mask() -> None:
    network, inputs = ConvolutionTwice().eval(), image(3)
    predictor = Predictor.capture(network, inputs)
    by_hand = []
    for mask in noises(predictor, inputs, "dropconnect")[0]:
        state = {"a.weight": network.a.weight * mask[:, :9].reshape(1, 1, 3, 3), "a.bias": network.a.bias * mask[:, 9]}
        by_hand.append(torch.func.functional_call(network, state, inputs))

    torch.testing.assert_close(samples(predictor, inputs, "dropconnect"), torch.stack(by_hand))


def test_a_transposed_convolution_is_no_site() -> None:
    predictor = Predictor.capture(nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Dropout()).eval(), image(2))

    assert [site.kind for site in predictor.sites] == ["activation", "input"]


def test_a_dropped_word_is_dropped_at_all_its_places_in_all_rows() -> None:
    network, inputs = nn.Embedding(7, WIDTH).eval(), tokens(5)
    predictor = Predictor.capture(network, inputs)
    by_hand = [F.embedding(inputs[0], network.weight * mask) for mask in noises(predictor, inputs, "word-dropout")[0]]

    torch.testing.assert_close(samples(predictor, inputs, "word-dropout"), torch.stack(by_hand))


def test_word_dropout_of_a_tied_table_leaves_the_head_alone() -> None:
    network, inputs = TiedWeights().eval(), tokens(5)
    predictor = Predictor.capture(network, inputs)
    weight = network.head.weight
    masks = noises(predictor, inputs, "word-dropout")[0]
    by_hand = [F.linear(F.embedding(inputs[0], weight * mask).mean(1), weight) for mask in masks]

    assert [site.name for site in predictor.sites if site.kind == "embedding"] == ["head.weight#words"]
    torch.testing.assert_close(samples(predictor, inputs, "word-dropout"), torch.stack(by_hand))


def test_a_tied_table_can_have_masked_weights_and_dropped_words_at_once() -> None:
    network, inputs = TiedWeights().eval(), tokens(5)
    predictor = Predictor.capture(network, inputs)
    both: dict[str, Override] = {"head.weight": "dropconnect", "head.weight#words": "word-dropout"}
    weights, words = noises(predictor, inputs, "off", both)
    by_hand = []
    for mask, word in zip(weights, words, strict=True):
        weight = network.head.weight * mask
        by_hand.append(F.linear(F.embedding(inputs[0], weight * word).mean(1), weight))

    torch.testing.assert_close(samples(predictor, inputs, "off", both), torch.stack(by_hand))


class Positions(nn.Module):
    """Words and their positions, each with a table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(7, WIDTH), nn.Embedding(4, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.words(tokens) + self.positions(torch.arange(tokens.shape[1]))


def test_a_table_of_positions_holds_no_words() -> None:
    predictor = Predictor.capture(Positions().eval(), tokens(2))

    assert [site.name for site in predictor.sites if site.kind == "embedding"] == ["words.weight"]


@pytest.mark.parametrize("make", [features, sequence])
@pytest.mark.parametrize("variant", ["variational-b", "shakeout"])
def test_noise_of_inputs_is_the_hand_written_layers(variant: str, make: object) -> None:
    network, inputs = nn.Linear(WIDTH, 4).eval(), make(3)  # type: ignore[operator] # a maker of inputs
    predictor = Predictor.capture(network, inputs)
    noise = noises(predictor, inputs, variant)[0][:, 0]
    x, sign = inputs[0], network.weight.sign()
    by_hand = [
        F.linear(r * x, network.weight, network.bias) + (variant == "shakeout") * 0.1 * F.linear((r - 1) * x, sign)
        for r in noise
    ]

    torch.testing.assert_close(samples(predictor, inputs, variant), torch.stack(by_hand))


@pytest.mark.parametrize("variant", ["fast", "variational-a"])
def test_moments_of_units_are_the_hand_written_layers(variant: str) -> None:
    network, inputs = nn.Linear(WIDTH, 4).eval(), features(3)
    predictor = Predictor.capture(network, inputs)
    deviation = F.linear(inputs[0].square(), network.weight.square()).sqrt()
    by_hand = [network(inputs[0]) + deviation * z for z in noises(predictor, inputs, variant)[0]]

    torch.testing.assert_close(samples(predictor, inputs, variant), torch.stack(by_hand))


@pytest.mark.parametrize("variant", ["fast", "variational-a"])
@pytest.mark.parametrize("network", [nn.Linear(WIDTH, WIDTH), LinearTwice()])
def test_moments_of_units_serve_one_use_on_rows_and_features_only(network: nn.Module, variant: str) -> None:
    inputs = sequence(2) if isinstance(network, nn.Linear) else features(2)
    predictor = Predictor.capture(network.eval(), inputs)

    with pytest.raises(InvalidPlan, match="rows and features only; switch the site off, or use 'variational-b'"):
        predictor.predict(inputs, passes=2, variant=variant)


@pytest.mark.parametrize("variant", ["variational-b", "shakeout"])
@pytest.mark.parametrize(("network", "make"), [(RawParameter(), features), (TiedWeights(), tokens)])
def test_noise_of_inputs_is_refused_where_inputs_cannot_be_told(network: nn.Module, make: object, variant: str) -> None:
    inputs = make(2)  # type: ignore[operator] # a maker of inputs
    predictor = Predictor.capture(network.eval(), inputs)

    with pytest.raises(InvalidPlan, match=r"not every use of this weight is a linear layer's; .* 'dropconnect'"):
        predictor.predict(inputs, passes=2, variant=variant)


TRAINED = {
    "variational-a": VariationalLinear(WIDTH, 4, p=0.3),
    "variational-b": VariationalLinear(WIDTH, 4, p=0.3, per_input=True),
    "shakeout": ShakeoutLinear(WIDTH, 4, p=0.3, c=0.7),
    "targeted-weights": TargetedLinear(WIDTH, 4, p=0.3, gamma=0.7),
    "targeted-units": TargetedLinear(WIDTH, 4, p=0.3, gamma=0.7, units=True),
    "word-dropout": WordDropoutEmbedding(7, WIDTH, p=0.3),
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_layers_own_variant_stands_at_its_site_with_what_it_was_trained_with(name: str) -> None:
    inputs = tokens(2) if name == "word-dropout" else features(2)
    predictor = Predictor.capture(TRAINED[name].eval(), inputs)
    site, *inputs_alone = predictor.sites
    extras = {"c": 0.7} if name == "shakeout" else {"gamma": 0.7} if name.startswith("targeted") else {}

    assert all(other.kind == "input" for other in inputs_alone)
    assert (site.name, site.variant, site.p, dict(site.parameters)) == ("weight", name, 0.3, extras)
    assert make_plan(predictor.sites) == {"weight": BY_NAME[name](p=0.3, **extras)}
    assert make_plan(predictor.sites, name, 0.2) == {"weight": BY_NAME[name](p=0.2, **extras)}
    assert make_plan(predictor.sites, overrides={"weight": 0.2}) == {"weight": BY_NAME[name](p=0.2, **extras)}


def test_a_weight_that_two_layers_train_otherwise_is_refused() -> None:
    first, second = DropConnectLinear(WIDTH, WIDTH, p=0.2), ShakeoutLinear(WIDTH, WIDTH, p=0.2)
    second.weight = first.weight

    with pytest.raises(CaptureFailed, match="its weight is trained otherwise elsewhere; give both the same dropout"):
        Predictor.capture(nn.Sequential(first, second).eval(), features(2))


def smallest(weight: Tensor, gamma: float, units: bool) -> Tensor:
    """Mark the targets one by one: of each unit's weights, or of the units by norm."""
    marks = torch.zeros_like(weight, dtype=torch.bool)
    if units:
        marks[weight.norm(dim=1).sort().indices[: int(gamma * len(weight))]] = True
        return marks
    for unit, row in enumerate(weight):
        marks[unit, row.abs().sort().indices[: int(gamma * len(row))]] = True
    return marks


@pytest.mark.parametrize("units", [False, True])
@pytest.mark.parametrize("layer", [nn.Linear, TargetedLinear])
def test_targets_are_dropped_from_the_weight_as_it_was_trained(layer: type[nn.Linear], units: bool) -> None:
    network, inputs = layer(WIDTH, 4).eval(), features(3)
    if isinstance(network, TargetedLinear):
        network.units = units
    predictor, variant = Predictor.capture(network, inputs), "targeted-units" if units else "targeted-weights"
    marks = smallest(network.weight, 0.5, units)
    by_hand = [
        F.linear(inputs[0], torch.where(marks & (keep == 0), 0.0, network.weight), network.bias)
        for keep in noises(predictor, inputs, variant)[0]
    ]

    torch.testing.assert_close(samples(predictor, inputs, variant), torch.stack(by_hand))


@pytest.mark.parametrize("units", [False, True])
def test_another_variant_acts_on_what_is_left_when_targets_are_pruned(units: bool) -> None:
    network, inputs = TargetedLinear(WIDTH, 4, units=units).eval(), features(3)
    predictor = Predictor.capture(network, inputs)
    left = torch.where(smallest(network.weight, 0.5, units), 0.0, network.weight)
    by_hand = [
        F.linear(inputs[0], left * mask[:, :WIDTH], network.bias * mask[:, WIDTH])
        for mask in noises(predictor, inputs, "dropconnect")[0]
    ]

    torch.testing.assert_close(network(inputs[0]), F.linear(inputs[0], left, network.bias))
    torch.testing.assert_close(samples(predictor, inputs, "dropconnect"), torch.stack(by_hand))


def test_targeted_dropout_of_a_convolution_takes_each_filter_as_a_unit() -> None:
    network, inputs = nn.Conv2d(1, 4, 3).eval(), image(3)
    predictor = Predictor.capture(network, inputs)
    marks = smallest(network.weight.flatten(1), 0.5, units=False)
    by_hand = []
    for keep in noises(predictor, inputs, "targeted-weights")[0]:
        weight = torch.where(marks & (keep == 0), 0.0, network.weight.flatten(1)).view_as(network.weight)
        by_hand.append(F.conv2d(inputs[0], weight, network.bias))

    torch.testing.assert_close(samples(predictor, inputs, "targeted-weights"), torch.stack(by_hand))
