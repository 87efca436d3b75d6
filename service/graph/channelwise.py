"""Operators that treat each channel by itself, axis 1 being the channels'; it does not know sites or noise.

A value [B, C, …] of `axes` axes for each row has its channels on axis 1. What is named here can run on some of the
channels alone and gives the same for those.
"""

import torch
from torch import fx

from service.graph.nodes import operand, operator_name, sequence_operand
from service.graph.precision import narrow, widen
from service.graph.sites import is_plain_pool

_POOLS = {
    f"{prefix}_pool{dims}d": dims for prefix in ("max", "avg", "adaptive_avg", "adaptive_max") for dims in (1, 2, 3)
}
_PROPORTIONAL = frozenset({"relu", "leaky_relu"})
_ELEMENTWISE = _PROPORTIONAL | {
    "celu", "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "mish", "relu6", "selu", "sigmoid", "silu",
    "softplus", "tanh",
}  # fmt: skip
_WITH_NUMBERS = frozenset({"add", "sub", "mul", "div"})
_CONVOLUTIONS = {f"conv{dims}d": dims for dims in (1, 2, 3)}


def is_channelwise(node: fx.Node, axes: int) -> bool:
    """Tell whether each channel of the result is made of the same channel of the one value that is not a parameter."""
    if node.target in (narrow, widen):
        return True
    name = operator_name(node)
    if not _is_aten(node) or not isinstance(operand(node, 0), fx.Node):
        return _is_plain_pool(node, axes)
    if name == "batch_norm":
        return operand(node, 5) is False and all(_is_fixed(operand(node, index)) for index in range(1, 5))
    if len(node.all_input_nodes) != 1:
        return False
    return name in _ELEMENTWISE | _WITH_NUMBERS or _POOLS.get(name) == axes - 1


def is_proportional(node: fx.Node, axes: int) -> bool:
    """Tell whether it is channelwise and f(c x) = c f(x) for every c ≥ 0, so that what is 0 stays 0.

    Rounding is not: a scale between the steps of bfloat16 would be rounded with every weight that it stands in.
    """
    if _is_plain_pool(node, axes) or node.target is widen:
        return True
    name = operator_name(node)
    return is_channelwise(node, axes) and (name in _PROPORTIONAL or _POOLS.get(name) == axes - 1)


def flattens(node: fx.Node) -> bool:
    """Tell whether it puts all axes behind the rows into one, so that a channel's entries are neighbours."""
    if node.target is torch.ops.aten.flatten.using_ints:
        return bool(operand(node, 1, 0) == 1 and operand(node, 2, -1) == -1)
    if operator_name(node) not in ("view", "reshape") or not _is_aten(node):
        return False
    rows, *rest = sequence_operand(node, 1)
    is_size = isinstance(rows, fx.Node) and rows.target is torch.ops.aten.sym_size.int
    return bool(is_size and operand(rows, 1) == 0) and rest == [-1]


def product_axes(node: fx.Node) -> int | None:
    """Return how many axes a row of a product's input has: 1 for a linear layer of features; None for no product.

    Its weight and bias are parameters that no noise reaches, and every output is made of every input channel.
    """
    if not _is_aten(node) or not _is_fixed(operand(node, 1)) or not _is_fixed(operand(node, 2)):
        return None
    name = operator_name(node)
    if name == "linear":
        return 1
    is_whole = name in _CONVOLUTIONS and operand(node, 6, 1) == 1
    return _CONVOLUTIONS[name] + 1 if is_whole else None


def _is_aten(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target.namespace == "aten"


def _is_fixed(value: object) -> bool:
    return value is None or (isinstance(value, fx.Node) and value.op == "get_attr")


def _is_plain_pool(node: fx.Node, axes: int) -> bool:
    return is_plain_pool(node) and len(sequence_operand(node, 1)) == axes - 1
