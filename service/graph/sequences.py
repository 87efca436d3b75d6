"""Our layers over sequences rewritten to sites, and to torch's recurrent layers; it does not know cells' equations."""

from typing import Any

import torch
from torch import fx

from service.dropout import Kind
from service.errors import CaptureFailed
from service.graph.nodes import float_operand, node_operand, operand, place_of
from service.graph.recurrent import recurrent_weights, unroll_layers
from service.graph.shapes import BatchAxis
from service.graph.sites import SITE, Canon, Trained

aten = torch.ops.aten
thinnet = torch.ops.thinnet
WEIGHT_DROPPED: dict[Any, Any] = {
    thinnet.weight_drop_lstm.default: aten.lstm.input,
    thinnet.weight_drop_gru.default: aten.gru.input,
}
_RATE = 9


def lock(canon: Canon, node: fx.Node) -> None:
    """Rewrite locked_dropout(x, batch first, p, _) to site(x).

    Raises:
        CaptureFailed: Its rows are not on the axis where the layer takes them to be.
    """
    x, batch_first, p = node_operand(node), operand(node, 1), float_operand(node, 2)
    site = canon.place(node, x, canon.dims(node), Kind.ACTIVATION, "locked", p, "dropout")
    if site.meta[SITE].batch != BatchAxis(0 if batch_first else 1):
        raise CaptureFailed(
            f"{place_of(node)}: the rows are not where batch_first={batch_first} says, so steps would have masks of "
            f"their own; give it batch_first={not batch_first}, or sequences of three axes"
        )
    canon.replace(node, site)


def place_recurrent_weights(canon: Canon, node: fx.Node) -> None:
    """Write torch's recurrent layer in a weight-dropped one's place, and note how its recurrent weights were trained.

    Raises:
        CaptureFailed: Two layers share a recurrent weight and were trained otherwise.
    """
    how: Trained = ("weight-dropped", float_operand(node, _RATE), ())
    for weight in recurrent_weights(node):
        if canon.trained.setdefault(weight, how) != how:
            raise CaptureFailed(f"{place_of(node)}: its weights are trained otherwise elsewhere; give both one dropout")
    with canon.graph.inserting_before(node):
        plain = canon.graph.create_node("call_function", WEIGHT_DROPPED[node.target], tuple(node.args[:_RATE]))
    plain.meta = dict(node.meta)
    canon.replace(node, plain)
    unroll_layers(canon, plain)
