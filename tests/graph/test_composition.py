"""Several variants in one plan, each at its own sites and with noise of its own, against one module written by hand."""

import torch
from moments import assert_same_moments
from stock import stock
from test_weight_variants import samples
from torch import Tensor, nn
from torch.nn import functional as F

from service.plan import Override

PASSES = 8000
LAYER = "encoder.layers.0"
SITES: dict[str, Override] = {
    f"{LAYER}.dropout": {"variant": "bernoulli", "p": 0.3},
    f"{LAYER}.self_attn.attention": {"variant": "bernoulli", "p": 0.2},
    f"{LAYER}.branch": {"variant": "drop-path", "p": 0.25},
    f"{LAYER}.branch#2": {"variant": "drop-path", "p": 0.5},
    "head.weight": {"variant": "dropconnect", "p": 0.1},
}


def by_hand(network: nn.Module, x: Tensor) -> Tensor:
    """Run a post-norm encoder layer and its head on rows [N, L, C], each with noise of its own."""
    layer, head = network.get_submodule(LAYER), network.head
    assert isinstance(layer, nn.TransformerEncoderLayer)
    assert isinstance(head, nn.Linear)
    heads, rows = layer.self_attn.num_heads, len(x)
    projected = F.linear(x, layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias)
    query, key, value = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in projected.chunk(3, -1))
    attention = F.dropout(torch.softmax(query @ key.mT / query.shape[-1] ** 0.5, -1), 0.2)
    attended = layer.self_attn.out_proj((attention @ value).transpose(1, 2).flatten(2))
    x = layer.norm1(x + attended * (torch.rand(rows, 1, 1) > 0.25) / 0.75)
    fed = layer.linear2(F.dropout(F.relu(layer.linear1(x)), 0.3))
    x = layer.norm2(x + fed * (torch.rand(rows, 1, 1) > 0.5) / 0.5)
    mask = (torch.rand(rows, *head.weight.shape) > 0.1) / 0.9
    bias = head.bias * (torch.rand(rows, len(head.bias)) > 0.1) / 0.9
    return (head.weight * mask @ x.mean(1)[:, :, None]).squeeze(-1) + bias


def test_dropout_attention_dropout_drop_path_and_dropconnect_compose() -> None:
    network, x, predictor = stock("TransformerEncoder")
    found = predictor.predict(x, passes=PASSES, variant="off", sites=SITES)
    torch.manual_seed(3)
    with torch.no_grad():
        expected = by_hand(network, x.expand(PASSES, *x.shape[1:]))

    assert_same_moments(found.mean[0], found.variance[0], expected)


def test_each_sites_noise_is_what_it_is_alone() -> None:
    """Another active site, one that never drops, leaves every pass of the first as it was."""
    _, x, predictor = stock("ResNet")
    logits: dict[str, Override] = {"8.weight": {"variant": "dropconnect", "p": 0.3}}
    plain = predictor.predict(x, passes=2, variant="off", sites=logits, quantities=["deterministic"])
    branch: dict[str, Override] = {"5.branch": {"variant": "drop-path", "p": 1e-12}}
    alone, together = (samples(predictor, (x,), "off", sites) for sites in (logits, logits | branch))

    assert (alone != plain.outputs["output"]["deterministic"]).any()
    torch.testing.assert_close(together, alone)
