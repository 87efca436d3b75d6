"""Prove that nothing random was missed, nested graphs included; it does not know what sites do."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

from service.errors import ImpureGraph, UnclaimedRandomness
from service.graph.nodes import operand, place_of
from service.graph.program import Program
from service.graph.recurrent import RECURRENT

aten = torch.ops.aten
_RATE_POSITION: dict[Any, int] = {aten.scaled_dot_product_attention.default: 4, **dict.fromkeys(RECURRENT, 5)}
_TRAINING_POSITION: dict[Any, int] = {
    aten.batch_norm.default: 5,
    aten.native_batch_norm.default: 5,
    aten._native_batch_norm_legit.default: 5,
}
_UNWRITTEN = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
_FILLING = {aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default, aten.copy_.default}


def verify(program: Program) -> None:
    """Check that every random node is claimed and that normalisation layers are in eval mode.

    Raises:
        UnclaimedRandomness: A random operation stands in the graph, or in one nested in it, unclaimed.
        ImpureGraph: A batch-norm layer would use (and change) its batch's own statistics, or memory is read
            that nothing has written.
    """
    nodes = list(_walk(program.graph))
    for path, node in nodes:
        if _is_random(node):
            within = f", inside {path}, where noise cannot be handed in" if path else ""
            raise UnclaimedRandomness(
                f"{place_of(node)} is random and no site accounts for it{within}; replace it with a dropout layer of "
                "torch or thinnet outside such regions, or switch it off in eval mode and capture that"
            )
    for _, node in nodes:
        _check_pure(node)


def _check_pure(node: fx.Node) -> None:
    if node.target in _TRAINING_POSITION and operand(node, _TRAINING_POSITION[node.target]) is True:
        raise ImpureGraph(
            f"{place_of(node)} uses its batch's own statistics; export it in eval mode, with running statistics"
        )
    if _is_read_unwritten(node):
        raise ImpureGraph(f"{place_of(node)} is read before it is written; make it with torch.zeros")


def _is_read_unwritten(node: fx.Node) -> bool:
    """Tell whether a tensor of unwritten memory is used other than by filling it first."""
    return node.target in _UNWRITTEN and any(user.target not in _FILLING for user in list(node.users)[:1])


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
    return bool(operand(node, _RATE_POSITION[node.target], 0.0)) if node.target in _RATE_POSITION else True
