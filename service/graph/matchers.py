"""The patterns that hold randomness, in order, each rewritten to sites; it does not know what a plan switches on.

| in the exported graph                           | in the canonical graph                          |
|-------------------------------------------------|-------------------------------------------------|
| dropout(x, p, _) and its relatives              | site(x)                                         |
| native_dropout(x, p, _)[0]                      | site(x)                                         |
| concrete_dropout(x, ℓ, t, …)                    | site(x), its rate sigm(ℓ)                       |
| layer_drop(x, p, _)                             | site(x)                                         |
| shake_drop(x, p, _)                             | q site(x)                                       |
| standout(u, a, α, β, _)                         | site(u, a), where off sigm(α u + β) a           |
| shake_shake(f₁, f₂, _)                          | site(f₁, f₂), where off their mean              |
| masksembles(x, masks, scale, _)                 | site(x)                                         |
| max_pooling_dropout(x, …) and relatives         | site(x), where off the mean over its windows    |
| max_drop(x, p, …)                               | site(x)                                         |
| dropconnect_linear(x, W, b, p, …) and relatives | linear(x, W, b), the site being W               |
| targeted_linear(x, W, b, p, γ, …)               | linear(x, pruned(W), b), the site being W       |
| drop_block(x, p, size, …)                       | site(x)                                         |
| cutout(x, size, _)                              | site(x)                                         |
| bernoulli_ → pad → max_pool2d → 1 - · → …       | site(x): torchvision                            |
| sparse_variational_linear(x, W, b, log σ², …)   | linear(x, pruned(W), b), the site being W       |
| word_dropout_embedding(W, i, …)                 | embedding(W, i), the site being W               |
| bernoulli_(empty, q) → div_(·, q) → mul(x, ·)   | site(x): timm, torchvision                      |
| rand + q → floor_ → mul(div(x, q), ·)           | site(x): Hugging Face                           |
| scaled_dot_product_attention(Q, K, V, …)        | site(softmax(Q Kᵀ)) V                           |
| lstm, gru, rnn of n layers                      | layer → site → layer → … → layer                |
| lstm_layer, gru_layer(x, …, variant, …)         | the layer's eval form, its steps being the site |
| locked_dropout(x, …, p, _)                      | site(x)                                         |
| weight_drop_lstm(x, …, p) and gru               | lstm, gru, the sites being recurrent weights    |
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from service.dropout import BY_NAME, Kind
from service.errors import CaptureFailed
from service.graph.blocks import cut_out, drop_blocks, makes_squares, refuse_squares, replace_blocks
from service.graph.branches import drop_layer, shake_branch
from service.graph.cells import TRAINED_CELLS, quieten
from service.graph.masks import choose_mask
from service.graph.nodes import float_operand, getitems, node_operand, only_user, operand, place_of
from service.graph.paired import gate, mix_branches
from service.graph.pools import TRAINED_POOLS, place_pool
from service.graph.recurrent import RECURRENT, unroll_layers
from service.graph.sequences import WEIGHT_DROPPED, lock, place_recurrent_weights
from service.graph.shapes import BATCH, BatchAxis, Dims
from service.graph.sites import SITE, Canon, LocatedSite
from service.graph.trained_weights import TRAINED_WEIGHTS, place_weight

aten = torch.ops.aten
thinnet = torch.ops.thinnet

_DROPOUTS: dict[Any, tuple[str, str, bool]] = {  # operator → variant, name of the site, in place
    aten.dropout.default: ("bernoulli", "dropout", False),
    aten.dropout_.default: ("bernoulli", "dropout", True),
    aten.feature_dropout.default: ("spatial", "dropout", False),
    aten.feature_dropout_.default: ("spatial", "dropout", True),
    aten.alpha_dropout.default: ("alpha", "dropout", False),
    aten.alpha_dropout_.default: ("alpha", "dropout", True),
    aten.feature_alpha_dropout.default: ("feature-alpha", "dropout", False),
    aten.feature_alpha_dropout_.default: ("feature-alpha", "dropout", True),
    thinnet.gaussian_dropout.default: ("gaussian", "dropout", False),
    thinnet.uniform_dropout.default: ("uniform", "dropout", False),
}
_WITHOUT_CHANNELS = {"spatial": "bernoulli", "feature-alpha": "alpha"}
_DIVISIONS = (aten.div.Tensor, aten.div.Scalar)
_SOFTMAX = (aten.softmax.int, aten._softmax.default, aten._safe_softmax.default)


def canonicalise(canon: Canon) -> None:
    """Rewrite every pattern that holds randomness; what none of them claims is left for the verifier."""
    for node in list(canon.graph.nodes):
        if node.op == "call_function" and not node._erased:
            for target, rewrite in _REWRITES:
                if node.target in target:
                    rewrite(canon, node)
                    break
    canon.program.graph.recompile()


def _dropout(canon: Canon, node: fx.Node) -> None:
    variant, what, inplace = _DROPOUTS[node.target]
    x, p = node_operand(node), float_operand(node, 1)
    dims = canon.dims(node)
    if len(dims) < 3:
        variant = _WITHOUT_CHANNELS.get(variant, variant)
    kind = Kind.ATTENTION if x.target in _SOFTMAX else Kind.ACTIVATION
    site = canon.place(node, x, dims, kind, variant, p, what, inplace)
    _check_channels(node, site.meta[SITE])
    canon.replace(node, site)


def _check_channels(node: fx.Node, located: LocatedSite) -> None:
    batch, variant = located.batch, BY_NAME.get(str(located.site.variant))
    if variant is not None and variant.per_channel and batch is not None and batch.axis > 1 and batch.factor != 1:
        raise CaptureFailed(f"{place_of(node)}: rows share channels' noise there; put the batch on the first axis")


def _native_dropout(canon: Canon, node: fx.Node) -> None:
    x, p = node_operand(node), float_operand(node, 1)
    users = dict(getitems(node))
    if 1 in users and users[1].users:
        return  # its mask is used elsewhere: nothing here can stand for it
    site = canon.place(node, x, canon.dims(x), Kind.ACTIVATION, "bernoulli", p, "dropout")
    for index, user in users.items():
        if index == 0:
            canon.replace(user, site)
        else:
            canon.graph.erase_node(user)
    canon.graph.erase_node(node)


def _concrete(canon: Canon, node: fx.Node) -> None:
    x, logit, t = node_operand(node), node_operand(node, 1), float_operand(node, 2)
    if logit.op != "get_attr":
        raise CaptureFailed(f"{place_of(node)}: the rate is computed; keep its logit as a parameter")
    p = float(getattr(canon.program.graph, str(logit.target)).double().sigmoid())
    dims = canon.dims(node)
    variant = "spatial-concrete" if operand(node, 3) and len(dims) >= 3 else "concrete"
    site = canon.place(node, x, dims, Kind.ACTIVATION, variant, p, "dropout", parameters=(("t", t),))
    _check_channels(node, site.meta[SITE])
    canon.replace(node, site)
    if not logit.users:
        canon.graph.erase_node(logit)


def _max_drop(canon: Canon, node: fx.Node) -> None:
    variant = "max-drop-channel" if operand(node, 2) else "max-drop"
    dims = canon.dims(node)
    site = canon.place(node, node_operand(node), dims, Kind.ACTIVATION, variant, float_operand(node, 1), "max_drop")
    if site.meta[SITE].batch != BatchAxis(0):
        raise CaptureFailed(f"{place_of(node)}: its first axis holds more than the rows; give max-drop one map a row")
    canon.replace(node, site)


def _bernoulli_path(canon: Canon, node: fx.Node) -> None:
    """Claim x · (b / q) where b ~ Bernoulli(q) has one entry for each row, or one for all."""
    if makes_squares(node):
        replace_blocks(canon, node)
        return
    q = operand(node, 1, 0.5)
    scaled = only_user(node, aten.div_.Tensor, aten.div_.Scalar, *_DIVISIONS)
    if not isinstance(q, float) or scaled is None or operand(scaled, 1) != q or not _one_for_each_row(canon, node):
        return
    product = only_user(scaled, aten.mul.Tensor)
    x = _other_factor(product, scaled)
    if product is not None and x is not None:
        _replace_branch(canon, product, x, q, [scaled, node, *_sources(node)])


def _rand_path(canon: Canon, node: fx.Node) -> None:
    """Claim (x / q) · ⌊q + u⌋ where u ~ U(0, 1) has one entry for each row, or one for all."""
    refuse_squares(canon, node)
    shifted = only_user(node, aten.add.Tensor, aten.add_.Tensor, aten.add.Scalar)
    floored = only_user(shifted, aten.floor_.default, aten.floor.default)
    product = only_user(floored, aten.mul.Tensor)
    divided = _other_factor(product, floored)
    if shifted is None or floored is None or product is None or divided is None or divided.target not in _DIVISIONS:
        return
    q = operand(shifted, 1)
    if isinstance(q, float) and not shifted.kwargs and operand(divided, 1) == q and _one_for_each_row(canon, node):
        _replace_branch(canon, product, node_operand(divided), q, [floored, shifted, node])


def _replace_branch(canon: Canon, product: fx.Node, x: fx.Node, q: float, claimed: list[fx.Node]) -> None:
    site = canon.place(product, x, canon.dims(product), Kind.RESIDUAL, "drop-path", round(1 - q, 12), "drop_path")
    canon.replace(product, site)
    for node in claimed:
        if not node.users:
            canon.graph.erase_node(node)


def _sources(node: fx.Node) -> list[fx.Node]:
    return [arg for arg in node.all_input_nodes if arg.target in (aten.empty.memory_format, aten.new_empty.default)]


def _other_factor(product: fx.Node | None, one: fx.Node | None) -> fx.Node | None:
    others = [arg for arg in product.args if arg is not one] if product is not None else []
    return others[0] if len(others) == 1 and isinstance(others[0], fx.Node) else None


def _one_for_each_row(canon: Canon, node: fx.Node) -> bool:
    first, *rest = canon.dims(node) or (None,)
    return first in (1, BATCH) and all(dim == 1 for dim in rest)


def attention_probabilities(
    query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None, grouped: bool
) -> Tensor:
    """Return softmax(Q Kᵀ · scale + mask) [..., H, Lq, Lk] as scaled_dot_product_attention defines it."""
    if grouped:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        below = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~below, float("-inf"))
    if mask is None:
        return scores.softmax(-1)  # of rows with something to attend to
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    probabilities: Tensor = aten._safe_softmax.default(scores, -1)
    return probabilities


def attention_values(probabilities: Tensor, value: Tensor, grouped: bool) -> Tensor:
    """Return the probabilities' weighted sum of the values [..., H, Lq, E]."""
    if grouped:
        value = value.repeat_interleave(probabilities.shape[-3] // value.shape[-3], -3)
    return probabilities @ value


def _attention(canon: Canon, node: fx.Node) -> None:
    query, key, value = (node_operand(node, index) for index in range(3))
    grouped = bool(operand(node, 7, False))
    settings = (operand(node, 3), bool(operand(node, 5, False)), operand(node, 6), grouped)
    dims: Dims = (*canon.dims(query)[:-1], canon.dims(key)[-2])
    with canon.graph.inserting_before(node):
        probabilities = canon.graph.call_function(attention_probabilities, (query, key, *settings))
    p = float_operand(node, 4, 0.0)
    site = canon.place(node, probabilities, dims, Kind.ATTENTION, "bernoulli", p, "attention")
    with canon.graph.inserting_before(node):
        mixed = canon.graph.call_function(attention_values, (site, value, grouped))
    canon.replace(node, mixed)


_Rewrite = Callable[[Canon, fx.Node], None]
_REWRITES: tuple[tuple[tuple[Any, ...], _Rewrite], ...] = (
    (tuple(_DROPOUTS), _dropout),
    ((aten.native_dropout.default,), _native_dropout),
    ((thinnet.concrete_dropout.default,), _concrete),
    ((thinnet.layer_drop.default,), drop_layer),
    ((thinnet.shake_drop.default,), shake_branch),
    ((thinnet.standout.default,), gate),
    ((thinnet.shake_shake.default,), mix_branches),
    ((thinnet.masksembles.default,), choose_mask),
    (TRAINED_POOLS, place_pool),
    ((thinnet.max_drop.default,), _max_drop),
    ((thinnet.drop_block.default,), drop_blocks),
    ((thinnet.cutout.default,), cut_out),
    (TRAINED_WEIGHTS, place_weight),
    ((aten.bernoulli_.float, aten.bernoulli.p), _bernoulli_path),
    ((aten.rand.default,), _rand_path),
    ((aten.rand_like.default, aten.bernoulli.default), refuse_squares),
    ((aten.scaled_dot_product_attention.default,), _attention),
    (RECURRENT, unroll_layers),
    (TRAINED_CELLS, quieten),
    ((thinnet.locked_dropout.default,), lock),
    (tuple(WEIGHT_DROPPED), place_recurrent_weights),
)
