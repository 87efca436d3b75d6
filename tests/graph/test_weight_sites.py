"""Weight sites: one mask for each parameter and pass, whatever uses it."""

import torch
from specimen import WIDTH, features, tokens
from torch import Tensor, nn
from torch.nn import functional as F
from zoo_weights import LinearTwice, TiedWeights

from service import Predictor
from service.graph.compiled import Compiled
from service.graph.drawing import Draw, draw_noises
from service.plan import make_plan

PASSES = 5


def masks(predictor: Predictor, inputs: tuple[Tensor, ...], passes: int = PASSES) -> Tensor:
    """Return the only site's masks [S, out, in + biases] for seed 0."""
    captured = predictor._captured
    compiled = Compiled(captured, make_plan(predictor.sites, "dropconnect", 0.5))
    shapes, draw = [tuple(each.shape) for each in inputs], Draw(0, 0, passes, None)
    (noise,) = draw_noises(compiled._rewritten.noises, captured.symbols, shapes, draw, torch.device("cpu"))
    return noise[:, 0]


def samples(predictor: Predictor, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the passes of the only output [S, B, …]."""
    asked = {"variant": "dropconnect", "p": 0.5, "passes": PASSES, "seed": 0, "quantities": ["samples"]}
    return predictor.predict(inputs, **asked).outputs["output"]["samples"].transpose(0, 1)


def test_an_embedding_and_the_head_tied_to_it_see_one_mask() -> None:
    network, inputs = TiedWeights().eval(), tokens(3)
    predictor = Predictor.capture(network, inputs)
    weights = [network.head.weight * mask for mask in masks(predictor, inputs)]
    by_hand = torch.stack([F.linear(F.embedding(inputs[0], weight).mean(1), weight) for weight in weights])

    assert [site.name for site in predictor.sites if site.kind == "weight"] == ["head.weight"]
    torch.testing.assert_close(samples(predictor, inputs), by_hand)


def test_a_linear_layer_used_twice_has_one_mask_of_weight_and_bias() -> None:
    network, inputs = LinearTwice().eval(), features(3)
    predictor = Predictor.capture(network, inputs)
    by_hand = []
    for mask in masks(predictor, inputs):
        weight, bias = network.a.weight * mask[:, :WIDTH], network.a.bias * mask[:, WIDTH]
        by_hand.append(F.linear(torch.relu(F.linear(inputs[0], weight, bias)), weight, bias))

    torch.testing.assert_close(samples(predictor, inputs), torch.stack(by_hand))


class SharedWeight(nn.Module):
    """Two layers with one weight and a bias each."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


def test_layers_that_share_a_weight_share_its_mask_and_not_their_biases() -> None:
    network, inputs = SharedWeight().eval(), features(3)
    predictor = Predictor.capture(network, inputs)
    by_hand = []
    for mask in masks(predictor, inputs):
        weight = network.a.weight * mask[:, :WIDTH]
        first = F.linear(inputs[0], weight, network.a.bias * mask[:, WIDTH])
        by_hand.append(F.linear(torch.relu(first), weight, network.b.bias * mask[:, WIDTH + 1]))

    torch.testing.assert_close(samples(predictor, inputs), torch.stack(by_hand))


def test_masks_and_weights_of_the_same_number_are_uncorrelated() -> None:
    torch.manual_seed(0)
    network = nn.Linear(64, 64, bias=False).eval()
    predictor = Predictor.capture(network, torch.randn(2, 64))
    dropped = masks(predictor, (torch.randn(2, 64),), passes=8).double().mean(0).flatten()
    correlation = torch.corrcoef(torch.stack([dropped, network.weight.detach().double().flatten()]))[0, 1]

    assert abs(float(correlation)) < 5 / 64
