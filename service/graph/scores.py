"""Tell attention's probabilities from any other softmax: softmax of scores Q Kᵀ, multiplied with values.

It does not know sites. Scores may be scaled, masked and reshaped on the way, and probabilities reshaped and cast.
"""

from collections.abc import Callable, Iterable

import torch
from torch import fx

from service.graph.nodes import operator_name

aten = torch.ops.aten
SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default, aten._safe_softmax.default})
_PRODUCTS = frozenset({"matmul", "bmm", "baddbmm", "einsum"})
_SHAPES = frozenset(
    {"view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze", "transpose", "permute", "clone"}
)
_CASTS = frozenset({"contiguous", "expand", "to", "_to_copy", "type_as"})
_MASKS = frozenset({"mul", "div", "add", "sub", "masked_fill", "where", "clamp", "tanh"})


def is_attention(node: fx.Node) -> bool:
    """Tell whether a node gives attention's probabilities."""
    if node.target not in SOFTMAX:
        return False
    scored = _reaches(node.all_input_nodes, _SHAPES | _CASTS | _MASKS, lambda each: each.all_input_nodes)
    return scored and _reaches(list(node.users), _SHAPES | _CASTS, lambda each: list(each.users))


def _reaches(start: list[fx.Node], through: frozenset[str], on: Callable[[fx.Node], Iterable[fx.Node]]) -> bool:
    """Tell whether a product of two tensors that are computed is reached through these operators alone."""
    seen: set[fx.Node] = set()
    stack = list(start)
    while stack:
        node = stack.pop()
        if operator_name(node) in _PRODUCTS and all(each.op != "get_attr" for each in node.all_input_nodes[-2:]):
            return True
        if node not in seen and operator_name(node) in through:
            stack += on(node)
        seen.add(node)
    return False
