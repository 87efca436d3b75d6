"""Stacked recurrent layers taken apart, so that the dropout between them stands alone.

It does not know cells' equations.
"""

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
from torch import fx

from service.dropout import Kind
from service.graph.nodes import float_operand, getitems, int_operand, node_operand, operand, sequence_operand
from service.graph.sites import Canon

aten = torch.ops.aten
RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)


def recurrent_weights(node: fx.Node) -> list[fx.Node]:
    """Return the hidden-to-hidden weights of a recurrent node: of each layer and direction the second parameter."""
    parameters = sequence_operand(node, 2)
    each = len(parameters) // (int_operand(node, 4) * (2 if operand(node, 7) else 1))
    return [weight for weight in parameters[1::each] if isinstance(weight, fx.Node)]


def unroll_layers(canon: Canon, node: fx.Node) -> None:
    """Rewrite an n-layer LSTM, GRU or RNN as n one-layer ones with a site on each output but the last.

    The order of the arguments is torch's: input, initial state(s), parameters, biases?, layers, dropout, train,
    bidirectional, batch first.
    """
    _Unrolled(canon, node).run()


class _Unrolled:
    def __init__(self, canon: Canon, node: fx.Node) -> None:
        self.canon, self.graph, self.node = canon, canon.graph, node
        self.is_lstm = node.target is aten.lstm.input
        self.states: Sequence[Any] = sequence_operand(node, 1) if self.is_lstm else [operand(node, 1)]
        self.parameters = sequence_operand(node, 2)
        self.layers = int_operand(node, 4)
        self.directions = 2 if operand(node, 7) else 1
        self.finals: list[list[fx.Node]] = [[] for _ in self.states]

    def run(self) -> None:
        x, node = node_operand(self.node), self.node
        dims, p = self.canon.symbols.dims(node.meta["val"][0]), float_operand(node, 5)
        for layer in range(self.layers):
            with self.graph.inserting_before(node):
                x = self.layer(x, layer)
            if layer + 1 < self.layers:
                x = self.canon.place(node, x, dims, Kind.RECURRENT, "bernoulli", p, f"layer_{layer}")
        with self.graph.inserting_before(node):
            results = [x, *(self.graph.call_function(aten.cat.default, (final, 0)) for final in self.finals)]
        for index, user in getitems(node):
            self.canon.replace(user, results[index])
        self.graph.erase_node(node)

    def layer(self, x: fx.Node, layer: int) -> fx.Node:
        """Write one layer and return its output; its final states are kept."""
        each, first = len(self.parameters) // self.layers, layer * self.directions
        own = [self.graph.call_function(aten.narrow.default, (s, 0, first, self.directions)) for s in self.states]
        state = own if self.is_lstm else own[0]
        parameters = self.parameters[layer * each : (layer + 1) * each]
        settings = (operand(self.node, 3), 1, 0.0, False, *self.node.args[7:])
        cell = self.graph.create_node("call_function", self.node.target, (x, state, parameters, *settings))
        cell.meta = {key: value for key, value in self.node.meta.items() if key != "val"}
        for index, final in enumerate(self.finals):
            final.append(self.graph.call_function(getitem, (cell, index + 1)))
        y = self.graph.call_function(getitem, (cell, 0))
        y.meta["val"] = self.node.meta["val"][0]  # every layer's outputs have one shape
        return y
