"""Prove that nothing random was missed, nested graphs included; it does not know what sites do."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from service.errors import ImpureGraph, UnclaimedRandomness
from service.graph.program import Program
from service.graph.recurrent import RECURRENT
from service.graph.sites import place_of

aten = torch.ops.aten
_RATE_POSITION = {aten.scaled_dot_product_attention.default: 4, **dict.fromkeys(RECURRENT, 5)}
_TRAINING_POSITION = {
    aten.batch_norm.default: 5,
    aten.native_batch_norm.default: 5,
    aten._native_batch_norm_legit.default: 5,
}


def verify(program: Program) -> None:
    """Check that every random node is claimed and that normalisation layers are in eval mode.

    Raises:
        UnclaimedRandomness: A random operation stands in the graph, or in one nested in it, unclaimed.
        ImpureGraph: A batch-norm layer would use (and change) its batch's own statistics.
    """
    for path, node in _walk(program.graph):
        if _is_random(node):
            within = f", inside {path}, where noise cannot be handed in" if path else ""
            raise UnclaimedRandomness(
                f"{place_of(node)} is random and no site accounts for it{within}; replace it with a dropout layer of torch "
                "or thinnet outside such regions, or switch it off in eval mode and capture that"
            )
        if _position(node, _TRAINING_POSITION, False) is True:
            raise ImpureGraph(f"{place_of(node)} was exported in training mode; export it again with the layer in eval mode")


def _walk(module: torch.nn.Module, path: str = "") -> Iterator[tuple[str, fx.Node]]:
    if not isinstance(module, fx.GraphModule):
        return
    for node in module.graph.nodes:
        if node.op == "call_function":
            yield path, node
        if node.op == "get_attr" and isinstance(nested := getattr(module, str(node.target), None), fx.GraphModule):
            users = ", ".join(sorted({str(user.target) for user in node.users}))
            yield from _walk(nested, f"{path} in {users}" if path else users)


def _is_random(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if torch.Tag.nondeterministic_seeded not in node.target.tags:
        return False
    return bool(_position(node, _RATE_POSITION, 0.0)) if node.target in _RATE_POSITION else True


def _position(node: fx.Node, table: dict[Any, int], default: Any) -> Any:
    position = table.get(node.target)
    return node.args[position] if position is not None and len(node.args) > position else default
