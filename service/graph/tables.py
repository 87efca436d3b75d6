"""Which inputs hold places in tables, and how long these are; it does not know anybody's values.

An input counts where its values reach an embedding as they are, all of them: through views, copies and casts. What is
picked out of it or computed from it may be anything.
"""

import torch
from torch import fx

from service.graph.nodes import is_tensor, node_operand, operator_name, value_of
from service.graph.program import Program

_AS_THEY_ARE = frozenset(
    {
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "movedim"),
        *("contiguous", "clone", "alias", "expand", "repeat", "to", "_to_copy", "long", "int"),
    }
)


def table_lengths(program: Program) -> tuple[int | None, ...]:
    """Return for each input how many rows the shortest table has in which its values are places; None without one."""
    lengths: dict[fx.Node, int] = {}
    for node in program.graph.graph.find_nodes(op="call_function", target=torch.ops.aten.embedding.default):
        table, source = node_operand(node), node_operand(node, 1)
        while operator_name(source) in _AS_THEY_ARE:
            source = node_operand(source)
        if is_tensor(table) and source.op == "placeholder" and not value_of(source).dtype.is_floating_point:
            length = int(value_of(table).shape[0])
            lengths[source] = min(length, lengths.get(source, length))
    return tuple(lengths.get(node) for node in program.placeholders())
