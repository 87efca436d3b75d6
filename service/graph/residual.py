"""Which operand of an addition is the branch of a residual block; it does not know sites' variants or plans.

x + f(x) is a residual block where f holds a weight. So is Wx + f(x), a shortcut of one projection, where f holds more
than one weight (He et al. 2016). What fits neither form is an ordinary addition.
"""

from collections.abc import Iterable

import torch
from torch import fx

from service.dropout import Kind
from service.graph.nodes import is_tensor, operator_name
from service.graph.sites import SITE, SITES, Canon
from service.graph.weights import is_product

aten = torch.ops.aten
_ADDITION = aten.add.Tensor
_WITH_BRANCHES = (Kind.RESIDUAL, Kind.BRANCHES)
_AFTER_PROJECTION = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm"})


def branch_of(canon: Canon, node: fx.Node) -> fx.Node | None:
    """Return the operand that is a residual branch, where it is no site of one already."""
    if node.target is not _ADDITION or node.kwargs or len(node.all_input_nodes) != 2:
        return None
    first, second = node.all_input_nodes
    if not (is_tensor(first) and is_tensor(second)) or canon.dims(first) != canon.dims(second):
        return None
    branches = [b for shortcut, b in ((first, second), (second, first)) if _is_branch(b, shortcut)]
    return branches[0] if len(branches) == 1 and not _is_residual_site(branches[0]) else None


def _is_branch(branch: fx.Node, shortcut: fx.Node) -> bool:
    ancestors = _ancestors(branch)
    if shortcut in ancestors:
        return _weights_between(shortcut, branch, ancestors) > 0
    source = _projected(shortcut)
    return source is not None and source in ancestors and _weights_between(source, branch, ancestors) > 1


def _projected(shortcut: fx.Node) -> fx.Node | None:
    """Return what a shortcut projects, where it is one product with a weight and perhaps a normalisation."""
    while operator_name(shortcut) in _AFTER_PROJECTION:
        shortcut = shortcut.all_input_nodes[0]
    return shortcut.all_input_nodes[0] if is_product(shortcut) else None


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = {node}
    stack = [node]
    while stack:
        fresh = [each for each in stack.pop().all_input_nodes if each not in seen]
        seen.update(fresh)
        stack += fresh
    return seen


def _weights_between(source: fx.Node, branch: fx.Node, ancestors: Iterable[fx.Node]) -> int:
    within, reached, stack, weights = set(ancestors), {source}, [source], 0
    while stack:
        for user in stack.pop().users:
            if user in within and user not in reached:
                reached.add(user)
                stack.append(user)
                weights += is_product(user)
    return weights


def _is_residual_site(branch: fx.Node) -> bool:
    """Tell whether a branch is dropped already, perhaps scaled by a number after that."""
    if operator_name(branch) == "mul" and len(branch.all_input_nodes) == 1:
        branch = branch.all_input_nodes[0]
    return branch.target in SITES and branch.meta[SITE].site.kind in _WITH_BRANCHES
