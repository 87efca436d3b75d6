"""Our layers that drop or shake a residual branch, rewritten to sites; it does not know what a plan switches on."""

import torch
from torch import fx

from service.dropout import Kind
from service.graph.nodes import float_operand, node_operand
from service.graph.sites import Canon

aten = torch.ops.aten


def drop_layer(canon: Canon, node: fx.Node) -> None:
    """Rewrite layer_drop(x, p, _) to site(x)."""
    canon.replace(node, _place(canon, node, "layer-drop", "layer_drop"))


def shake_branch(canon: Canon, node: fx.Node) -> None:
    """Rewrite shake_drop(x, p, _) to q site(x): its factor commutes with the noise."""
    site = _place(canon, node, "shake-drop", "shake_drop")
    with canon.graph.inserting_before(node):
        scaled = canon.graph.call_function(aten.mul.Tensor, (site, 1 - float_operand(node, 1)))
    scaled.meta = dict(node.meta)
    canon.replace(node, scaled)


def _place(canon: Canon, node: fx.Node, variant: str, what: str) -> fx.Node:
    x, p = node_operand(node), float_operand(node, 1)
    return canon.place(node, x, canon.dims(node), Kind.RESIDUAL, variant, p, what)
