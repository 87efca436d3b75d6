"""Attention dropout by request, on stock layers trained with it or without, against attention written by hand."""

from dataclasses import dataclass

import pytest
import torch
from moments import assert_same_moments
from test_weight_variants import PASSES, noises
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor

WIDTH, LENGTH, P = 12, 4, 0.1
HIDES_THE_FUTURE = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
MASKS: dict[str, Tensor | None] = {
    "none": None,
    "boolean": torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1], [0, 0, 1, 0]], dtype=torch.bool),
    "float": torch.linspace(-2, 1, LENGTH * LENGTH).sin().reshape(LENGTH, LENGTH),
    "causal": torch.zeros(LENGTH, LENGTH).masked_fill(HIDES_THE_FUTURE, float("-inf")),
}


@dataclass(frozen=True)
class Setting:
    """How a stock layer attends.

    Attributes:
        heads: Its heads.
        mask: Which mask it is given.
        trained: The rate it was trained with.
        tells: Whether it is asked for its weights, which takes another path in torch.
        batch_first: Whether rows are on its first axis.
    """

    heads: int
    mask: str = "none"
    trained: float = 0.0
    tells: bool = True
    batch_first: bool = True


SETTINGS = [
    *(Setting(heads, "boolean", tells=tells) for heads in (1, 2, 3, 12) for tells in (True, False)),
    *(Setting(2, mask, tells=tells) for mask in ("none", "float", "causal") for tells in (True, False)),
    *(Setting(3, "causal", 0.4, tells) for tells in (True, False)),
    *(Setting(3, "float", tells=tells, batch_first=False) for tells in (True, False)),
]


class Attends(nn.Module):
    """A stock attention layer on a sequence, rows in front."""

    def __init__(self, setting: Setting) -> None:
        super().__init__()
        self.setting = setting
        self.layer = nn.MultiheadAttention(
            WIDTH, setting.heads, dropout=setting.trained, batch_first=setting.batch_first
        )

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.setting.batch_first else x.transpose(0, 1)
        options = {"need_weights": self.setting.tells, "is_causal": self.setting.mask == "causal"}
        found: Tensor = self.layer(y, y, y, attn_mask=MASKS[self.setting.mask], **options)[0]
        return found if self.setting.batch_first else found.transpose(0, 1)


def attend(layer: nn.MultiheadAttention, x: Tensor, mask: Tensor | None, noise: Tensor) -> Tensor:
    """Return softmax(Q Kᵀ / √d + mask) ∘ noise · V of all heads [B, T, width] under noise […, heads, T, T]."""
    q, k, v = (
        F.linear(x, weight, bias).unflatten(-1, (layer.num_heads, -1)).transpose(-3, -2)
        for weight, bias in zip(layer.in_proj_weight.chunk(3), layer.in_proj_bias.chunk(3), strict=True)
    )
    scores = q @ k.mT / (WIDTH // layer.num_heads) ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return layer.out_proj((scores.softmax(-1) * noise @ v).transpose(-3, -2).flatten(-2))


def attention_site(predictor: Predictor) -> str:
    (name,) = (site.name for site in predictor.sites if site.kind == "attention")
    return name


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_every_head_query_and_key_has_a_probability_dropped_of_its_own(setting: Setting) -> None:
    network, x = Attends(setting).eval(), torch.randn(3, LENGTH, WIDTH)
    predictor = Predictor.capture(network, x)
    sites = {attention_site(predictor): {"variant": "bernoulli", "p": P}}
    (drawn,) = noises(predictor, (x,), "off", sites)
    answer = predictor.predict(x, variant="off", sites=sites, passes=PASSES, seed=0, quantities=["samples"])
    drawn = drawn.reshape(PASSES, setting.heads, LENGTH, LENGTH)
    expected = torch.stack([attend(network.layer, x, MASKS[setting.mask], noise) for noise in drawn])

    torch.testing.assert_close(answer.outputs["output"]["samples"].transpose(0, 1), expected)


@pytest.mark.parametrize("tells", [True, False])
def test_moments_by_request_are_those_of_a_loop_with_numbers_of_its_own(tells: bool) -> None:
    setting = Setting(3, "boolean", tells=tells)
    network, x = Attends(setting).eval(), torch.randn(1, LENGTH, WIDTH)
    predictor = Predictor.capture(network, x)
    only = {site.name: "off" for site in predictor.sites if site.kind != "attention"}
    mine = predictor.predict(x, variant="bernoulli", p=P, sites=only, passes=3000)
    noise = (torch.rand(3000, 3, LENGTH, LENGTH) >= P) / (1 - P)
    with torch.no_grad():
        theirs = attend(network.layer, x[0], MASKS["boolean"], noise)

    assert_same_moments(mine.mean[0], mine.variance[0], theirs)


def encode(layer: nn.TransformerEncoderLayer, x: Tensor, mask: Tensor | None, noise: Tensor) -> Tensor:
    def feed(y: Tensor) -> Tensor:
        return layer.linear2(F.relu(layer.linear1(y)))

    if layer.norm_first:
        x = x + attend(layer.self_attn, layer.norm1(x), mask, noise)
        return x + feed(layer.norm2(x))
    x = layer.norm1(x + attend(layer.self_attn, x, mask, noise))
    return layer.norm2(x + feed(x))


class Encodes(nn.Module):
    """A stock encoder layer under a mask."""

    def __init__(self, layer: nn.TransformerEncoderLayer, mask: str) -> None:
        super().__init__()
        self.layer, self.mask = layer, mask

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x, src_mask=MASKS[self.mask], is_causal=self.mask == "causal")
        return found


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("heads", [1, 4])
def test_an_encoder_layer_has_dropout_on_its_attention_alone_where_that_is_asked(
    heads: int, mask: str, norm_first: bool
) -> None:
    layer = nn.TransformerEncoderLayer(WIDTH, heads, 16, dropout=0.3, batch_first=True, norm_first=norm_first)
    network, x = Encodes(layer, mask).eval(), torch.randn(3, LENGTH, WIDTH)
    predictor = Predictor.capture(network, x)
    sites = {attention_site(predictor): {"variant": "bernoulli", "p": P}}
    (drawn,) = noises(predictor, (x,), "off", sites)
    answer = predictor.predict(x, variant="off", sites=sites, passes=PASSES, seed=0, quantities=["samples"])
    with torch.no_grad():
        expected = torch.stack([encode(layer, x, MASKS[mask], noise) for noise in drawn])

    torch.testing.assert_close(answer.outputs["output"]["samples"].transpose(0, 1), expected, rtol=1e-4, atol=1e-5)


class Softmaxes(nn.Module):
    """Softmaxes that are no attention: of a mixture's gate, of a linear layer, and of an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.a, self.b, self.head = nn.Linear(6, 2), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        experts = torch.stack([self.a(x), self.b(x)], 1)
        mixed = (self.gate(x).softmax(-1)[:, None] @ experts)[:, 0]
        return self.head(mixed.softmax(-1)).softmax(-1)


def test_no_other_softmax_is_taken_for_attention() -> None:
    predictor = Predictor.capture(Softmaxes().eval(), torch.randn(2, 6))

    assert [site.name for site in predictor.sites if site.kind == "attention"] == []


def test_attention_trained_with_dropout_keeps_the_site_that_it_had() -> None:
    named = {Setting(2, trained=0.2): "layer.dropout", Setting(2, trained=0.2, tells=False): "layer.attention"}
    for setting, name in named.items():
        predictor = Predictor.capture(Attends(setting).eval(), torch.randn(2, LENGTH, WIDTH))
        assert attention_site(predictor) == name
