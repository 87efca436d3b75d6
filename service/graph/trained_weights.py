"""Claim the operators of layers that are trained with noisy weights: the plain operator stays, the weight is the site.

It does not know how a weight's noise acts.
"""

from typing import Any

import torch
from torch import fx

from service.dropout.sparse_variational import without_noisy_weights
from service.dropout.targeted_weights import pruned
from service.errors import CaptureFailed
from service.graph.nodes import float_operand, node_operand, operand, place_of
from service.graph.sites import Canon, Trained

aten = torch.ops.aten
thinnet = torch.ops.thinnet
_CONVOLUTION = thinnet.dropconnect_conv2d.default
_TARGETED = thinnet.targeted_linear.default
_SPARSE = thinnet.sparse_variational_linear.default
_LEARNED = thinnet.learned_variational_linear.default
_LOOK_UP = thinnet.word_dropout_embedding.default
_PLAIN: dict[Any, Any] = {_LOOK_UP: aten.embedding.default, _CONVOLUTION: aten.conv2d.default}
TRAINED_WEIGHTS: tuple[Any, ...] = (
    thinnet.dropconnect_linear.default,
    thinnet.variational_linear.default,
    thinnet.shakeout_linear.default,
    _CONVOLUTION,
    _TARGETED,
    _SPARSE,
    _LEARNED,
    _LOOK_UP,
)


def place_weight(canon: Canon, node: fx.Node) -> None:
    """Write the plain operator in a training operator's place, and note how its weight was trained.

    Raises:
        CaptureFailed: Two layers share the weight and were trained otherwise.
    """
    weight, how = node_operand(node, 0 if node.target is _LOOK_UP else 1), _how(canon, node)
    if canon.trained.setdefault(weight, how) != how:
        raise CaptureFailed(f"{place_of(node)}: its weight is trained otherwise elsewhere; give both the same dropout")
    plain = _PLAIN.get(node.target, aten.linear.default)
    with canon.graph.inserting_before(node):
        operands = [operand(node, index) for index in range(3)]
        if node.target is _CONVOLUTION:
            operands += [operand(node, index) for index in range(4, 8)]
        if node.target is _TARGETED:
            operands[1] = canon.graph.call_function(pruned, (weight, operand(node, 4), operand(node, 5)))
            operands[1].meta = {key: value for key, value in weight.meta.items() if key == "val"}
        if node.target is _SPARSE:
            operands[1] = canon.graph.call_function(without_noisy_weights, (weight, node_operand(node, 3)))
            operands[1].meta = {key: value for key, value in weight.meta.items() if key == "val"}
        product = canon.graph.call_function(plain, tuple(operands))
    product.meta = dict(node.meta)
    canon.replace(node, product)


def _how(canon: Canon, node: fx.Node) -> Trained:
    if node.target is _SPARSE:
        return "sparse-variational", None, ()
    if node.target is _LEARNED:
        return "variational-b" if operand(node, 4) else "variational-a", _learned_rate(canon, node), ()
    p = float_operand(node, 3)
    if node.target is _LOOK_UP:
        return "word-dropout", p, ()
    if node.target is thinnet.shakeout_linear.default:
        return "shakeout", p, (("c", float_operand(node, 4)),)
    if node.target is _CONVOLUTION:
        return "dropconnect", p, ()
    if node.target is _TARGETED:
        name = "targeted-units" if operand(node, 5) else "targeted-weights"
        return name, p, (("gamma", float_operand(node, 4)),)
    if node.target is thinnet.variational_linear.default:
        return "variational-b" if operand(node, 4) else "variational-a", p, ()
    return "dropconnect-sampled" if operand(node, 4) else "dropconnect", p, ()


def _learned_rate(canon: Canon, node: fx.Node) -> float:
    """Return the p whose p / q is the layer's α = sigm(a)."""
    logit = node_operand(node, 3)
    if logit.op != "get_attr":
        raise CaptureFailed(f"{place_of(node)}: its α is computed; keep its logit as a parameter")
    alpha = float(getattr(canon.program.graph, str(logit.target)).double().sigmoid())
    return alpha / (1 + alpha)
