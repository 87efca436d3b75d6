"""Read a graph's nodes: where in the user's code they came from, and their arguments as what they must be.

It does not know sites or plans.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from service.errors import CaptureFailed


def module_of(node: fx.Node) -> tuple[str, str]:
    """Return the path and class name of the user's module that a node came from."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, cls = list(stack.values())[-1][:2]
    return str(path), cls if isinstance(cls, str) else f"{cls.__module__}.{cls.__qualname__}"


def place_of(node: fx.Node) -> str:
    """Say where in the user's code a node came from."""
    path, cls = module_of(node)
    lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines() if line.strip()]
    code = f", at `{lines[-1]}`" if lines else ""
    return f"{node.target} in module {path or 'the root'!r} ({cls or 'unknown class'}){code}"


def operand(node: fx.Node, index: int, default: Any = None) -> Any:
    """Return an argument by its place in the operator's schema, however it was passed; the default where it was not."""
    if len(node.args) > index:
        return node.args[index]
    names = [argument.name for argument in _schema_arguments(node)]
    return node.kwargs.get(names[index], default) if index < len(names) else default


def node_operand(node: fx.Node, index: int = 0) -> fx.Node:
    """Return an argument that must be a node.

    Raises:
        CaptureFailed: It is something else.
    """
    found: fx.Node = _as(fx.Node, node, index, "a tensor")
    return found


def float_operand(node: fx.Node, index: int, default: float | None = None) -> float:
    """Return an argument that must be a plain number.

    Raises:
        CaptureFailed: It is computed, or no number.
    """
    value = operand(node, index, default)
    return float(value if isinstance(value, (int, float)) else _as(float, node, index, "a plain number"))


def int_operand(node: fx.Node, index: int) -> int:
    """Return an argument that must be a plain whole number.

    Raises:
        CaptureFailed: It is computed, or no whole number.
    """
    found: int = _as(int, node, index, "a plain whole number")
    return found


def sequence_operand(node: fx.Node, index: int) -> Sequence[Any]:
    """Return an argument that must be a list.

    Raises:
        CaptureFailed: It is something else.
    """
    found: Sequence[Any] = _as((list, tuple), node, index, "a list")
    return found


def returned(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """Return the nodes of a graph's outputs."""
    values = graph.output_node().args[0]
    assert isinstance(values, tuple)
    return tuple(value for value in values if isinstance(value, fx.Node))


def value_of(node: fx.Node) -> Tensor:
    """Return the tensor without data that the export recorded for a node."""
    value = node.meta["val"]
    assert isinstance(value, Tensor)
    return value


def operator_name(node: fx.Node) -> str:
    """Return the operator's name without its library and overload; nothing where a node calls none."""
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.rpartition(":")[2]
    return str(getattr(node.target, "__name__", "")) if callable(node.target) else ""


def is_tensor(node: fx.Node) -> bool:
    """Tell whether the export recorded a node's value, and it is a tensor."""
    return isinstance(node.meta.get("val"), Tensor)


def only_user(node: fx.Node | None, *targets: Any) -> fx.Node | None:
    """Return the one node that reads a value, if it calls one of these."""
    users = list(node.users) if node is not None else []
    return users[0] if len(users) == 1 and users[0].target in targets else None


def getitems(node: fx.Node) -> list[tuple[int, fx.Node]]:
    """Return the users of a node that returns several values, each with the index that it takes."""
    return [(int_operand(user, 1), user) for user in list(node.users)]


def _schema_arguments(node: fx.Node) -> Sequence[Any]:
    return node.target._schema.arguments if isinstance(node.target, torch._ops.OpOverload) else ()


def _as(kind: Any, node: fx.Node, index: int, wanted: str) -> Any:
    value = operand(node, index)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise CaptureFailed(f"{place_of(node)}: argument {index} is {value!r}, not {wanted}; write it as one")
    return value
