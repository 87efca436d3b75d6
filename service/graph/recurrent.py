"""Stacked recurrent layers taken apart, so that the dropout between them stands alone; it does not know cells' equations."""

from operator import getitem
from typing import Any

import torch
from torch import fx

from service.dropout import Kind
from service.graph.sites import Canon

aten = torch.ops.aten
RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def unroll_layers(canon: Canon, node: fx.Node) -> None:
    """Rewrite an n-layer LSTM, GRU or RNN as n one-layer ones with a site on each output but the last.

    The order of the arguments is torch's: input, initial state(s), parameters, biases?, layers, dropout, train,
    bidirectional, batch first.
    """
    x, state, parameters, has_biases, layers, p, _, bidirectional, batch_first = node.args
    graph, directions = canon.graph, 2 if bidirectional else 1
    is_lstm = node.target is aten.lstm.input
    states: Any = state if is_lstm else [state]
    each = len(parameters) // layers  # type: ignore[arg-type, operator] # fx types every argument alike
    dims = canon.symbols.dims(node.meta["val"][0])
    finals: list[list[fx.Node]] = [[] for _ in states]
    for layer in range(layers):  # type: ignore[arg-type] # an int in the schema
        with graph.inserting_before(node):
            own = [graph.call_function(aten.narrow.default, (s, 0, layer * directions, directions)) for s in states]
            step = parameters[layer * each : (layer + 1) * each]  # type: ignore[index] # a list in the schema
            cell = graph.call_function(
                node.target,  # type: ignore[arg-type] # an operator, as matched
                (x, own if is_lstm else own[0], step, has_biases, 1, 0.0, False, bidirectional, batch_first),
            )
            cell.meta = {key: value for key, value in node.meta.items() if key != "val"}
            x = graph.call_function(getitem, (cell, 0))
            for index, final in enumerate(finals):
                final.append(graph.call_function(getitem, (cell, index + 1)))
        if layer + 1 < layers:  # type: ignore[operator] # an int in the schema
            x = canon.place(node, x, dims, Kind.RECURRENT, "bernoulli", float(p), f"layer_{layer}")  # type: ignore[arg-type] # a float in the schema
    with graph.inserting_before(node):
        results = [x, *(graph.call_function(aten.cat.default, (final, 0)) for final in finals)]
    for user in list(node.users):
        canon.replace(user, results[user.args[1]])  # type: ignore[arg-type, index] # users of a tuple are getitems
    graph.erase_node(node)



