"""Which numbers of an input are looked up in tables, and how long these are; it does not know anybody's values.

A number counts where it reaches an embedding as it is, through views, copies, casts and picks of some columns. What is
computed from it may be anything.
"""

from math import prod

import torch
from torch import Tensor, fx

from service.graph.nodes import is_tensor, node_operand, operator_name, value_of
from service.graph.program import Program

NOWHERE = torch.iinfo(torch.int64).max
_ALL = frozenset(
    {
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "movedim"),
        *("contiguous", "clone", "alias", "expand", "repeat", "to", "_to_copy", "long", "int"),
    }
)
_SOME = frozenset({"select", "slice", "narrow", "unbind", "split", "split_with_sizes", "chunk", "getitem"})


def table_lengths(program: Program) -> tuple[Tensor | None, ...]:
    """Return for each input the length of the shortest table that its numbers are looked up in; None without one.

    It has the shape of a row where tables differ by column, `NOWHERE` where a column is looked up in none, and no axes
    where it is one for all.
    """
    lengths: dict[fx.Node, Tensor] = {}
    for node in program.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        table, source, path = node_operand(node), node_operand(node, 1), list[fx.Node]()
        while operator_name(source) in _ALL | _SOME:
            path.insert(0, source)
            source = node_operand(source)
        if is_tensor(table) and source.op == "placeholder" and not value_of(source).dtype.is_floating_point:
            own = _lengths(source, path, int(value_of(table).shape[0]))
            lengths[source] = torch.minimum(own, lengths.get(source, own))
    return tuple(lengths.get(node) for node in program.placeholders())


def _lengths(source: fx.Node, path: list[fx.Node], length: int) -> Tensor:
    """Return a table's length for the numbers of a row that come to it."""
    if all(operator_name(node) in _ALL for node in path):
        return torch.tensor(length)
    row = value_of(source).shape[1:]
    is_fixed = not any(isinstance(size, torch.SymInt) for size in row)
    if not is_fixed or any(len(node.all_input_nodes) > 1 for node in path):
        return torch.tensor(NOWHERE)  # which ones come depends on how many there are
    places = torch.arange(prod(row)).reshape(1, *row)
    try:
        for node in path:
            places = node.target(places, *node.args[1:], **node.kwargs)  # type: ignore[operator] # it is called
    except (IndexError, RuntimeError):
        return torch.tensor(NOWHERE)  # it picks rows
    return torch.full((prod(row),), NOWHERE).index_fill(0, places.flatten(), length).reshape(row)
