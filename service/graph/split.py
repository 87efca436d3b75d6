"""Cut a rewritten graph in two: the trunk, which no noise reaches, and the suffix, which runs once for every pass.

It does not know how passes run together. What depends on neither inputs nor noise is computed once, here. Whatever is
made from sizes alone and has rows in it (an `arange` over the batch, a recurrent layer's initial state) is made again
in the suffix, where the batch may hold several passes.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, fx

from service.graph.acting import Apply
from service.graph.bit_masks import NoisyProduct
from service.graph.cells import ProjectInputs, RunSteps
from service.graph.layout import LAYOUT, Layout
from service.graph.nodes import node_operand, returned
from service.graph.rewrite import ROWS, Rewritten


class Stage(Enum):
    """When a node's value is known."""

    CONSTANT = 0
    SIZES = 1
    TRUNK = 2
    SUFFIX = 3


@dataclass(frozen=True)
class Boundary:
    """A value that the trunk hands to the suffix.

    Attributes:
        layout: How it depends on the batch.
        shared: Whether every user in the suffix takes one pass's rows for all passes.
    """

    layout: Layout
    shared: bool


@dataclass(frozen=True)
class Split:
    """A graph cut at the first active sites.

    Attributes:
        trunk: (inputs …, rows) → the boundary values, then the outputs that no noise reaches.
        suffix: (boundary values …, rows, noises …) → the outputs that noise reaches.
        boundaries: What crosses, in order.
        stochastic: For each output, whether noise reaches it.
    """

    trunk: fx.GraphModule
    suffix: fx.GraphModule
    boundaries: tuple[Boundary, ...]
    stochastic: tuple[bool, ...]


def split(rewritten: Rewritten) -> Split:
    """Cut a rewritten graph; it is not changed but for the constants folded into its state."""
    return _Splitter(rewritten).run()


class _Splitter:
    def __init__(self, rewritten: Rewritten) -> None:
        self.module = rewritten.module
        self.nodes = list(rewritten.module.graph.nodes)
        self.noises = {noise.placeholder for noise in rewritten.noises}
        self.stages: dict[fx.Node, Stage] = {}
        self.constants: dict[fx.Node, str] = {}
        self.suffix = fx.Graph()
        self.inside: dict[fx.Node, fx.Node] = {}
        self.crossing: dict[fx.Node, fx.Node] = {}  # trunk node → its placeholder in the suffix

    def run(self) -> Split:
        for node in self.nodes:
            self.stages[node] = self._stage(node)
        self._fold_constants()
        outputs = returned(self.module.graph)
        stochastic = tuple(self.stages[node] is Stage.SUFFIX for node in outputs)
        self._write_suffix([node for node, reached in zip(outputs, stochastic, strict=True) if reached])
        fixed = [node for node, reached in zip(outputs, stochastic, strict=True) if not reached]
        boundaries = tuple(self._boundary(node) for node in self.crossing)
        trunk = self._write_trunk([*self.crossing, *fixed])
        return Split(trunk, fx.GraphModule(self.module, self.suffix), boundaries, stochastic)

    def _stage(self, node: fx.Node) -> Stage:
        if node.op == "placeholder":
            return Stage.SUFFIX if node.target in self.noises else Stage.TRUNK
        if node.target is torch.ops.aten.sym_size.int and self.stages[node_operand(node)] is not Stage.SUFFIX:
            return Stage.SIZES
        return max(
            (self.stages[each] for each in node.all_input_nodes), key=lambda stage: stage.value, default=Stage.CONSTANT
        )

    def _fold_constants(self) -> None:
        values: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if self.stages[node] is not Stage.CONSTANT or node.op not in ("get_attr", "call_function"):
                continue
            if node.op == "get_attr":
                values[node] = _attribute(self.module, str(node.target))
                self.constants[node] = str(node.target)
                continue
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            assert callable(node.target)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
            if isinstance(values[node], Tensor):
                self.constants[node] = f"constant_{node.name}"
                self.module.register_buffer(self.constants[node], values[node])

    def _boundary(self, node: fx.Node) -> Boundary:
        layout = node.meta.get(LAYOUT, Layout(is_tensor=False))
        users = [user for user in node.users if self.stages[user] is Stage.SUFFIX]
        shareable = bool(users) and layout.is_tensor and layout.batch is not None and layout.batch.factor == 1
        shared = shareable and all(
            isinstance(user.target, (Apply, NoisyProduct, ProjectInputs, RunSteps))
            and user.target.batch == layout.batch
            and not any(self.stages[each] is Stage.SUFFIX for each in user.all_input_nodes[2:])
            for user in users
        )
        return Boundary(layout, shared)

    def _write_suffix(self, outputs: list[fx.Node]) -> None:
        needed = _ancestors(outputs, lambda node: self.stages[node] is Stage.SUFFIX)
        edges = [each for node in self.nodes if node in needed for each in node.all_input_nodes]
        remade: dict[fx.Node, None] = {}
        for node in dict.fromkeys(edges):
            self._cross(node, remade)
        self.inside |= self.crossing
        rows = self.suffix.placeholder(ROWS)
        for node in self.nodes:
            if node.op == "placeholder" and node.target == ROWS:
                self.inside[node] = rows
            elif node.op == "placeholder" and node.target in self.noises:
                self.inside[node] = self.suffix.node_copy(node)
        for node in self.nodes:
            if node in remade or (node in needed and node.op != "placeholder"):
                self.inside[node] = self.suffix.node_copy(node, lambda each: self._in_suffix(each))
        self.suffix.output(tuple(self.inside[node] for node in outputs))

    def _cross(self, node: fx.Node, remade: dict[fx.Node, None]) -> None:
        """Decide how a value made before the noise reaches the suffix: handed over, or made again there."""
        if self.stages[node] in (Stage.SUFFIX, Stage.CONSTANT) or node.target == ROWS or node in self.crossing:
            return
        if self.stages[node] is Stage.TRUNK or self._is_leaf_size(node) or not self._has_rows(node):
            self.crossing[node] = self.suffix.placeholder(f"boundary_{len(self.crossing)}")
            return
        remade[node] = None
        for each in node.all_input_nodes:
            self._cross(each, remade)

    def _is_leaf_size(self, node: fx.Node) -> bool:
        return node.target is torch.ops.aten.sym_size.int

    def _has_rows(self, node: fx.Node) -> bool:
        layout = node.meta.get(LAYOUT)
        return layout is None or layout.entangled or layout.batch is not None

    def _in_suffix(self, node: fx.Node) -> fx.Node:
        if node in self.inside:
            return self.inside[node]
        if self.stages[node] is Stage.CONSTANT:
            self.inside[node] = self._constant(self.suffix, node)
        return self.inside[node]

    def _constant(self, graph: fx.Graph, node: fx.Node) -> fx.Node:
        if node in self.constants:
            return graph.get_attr(self.constants[node])
        return graph.node_copy(node, lambda each: self._constant(graph, each))  # a tuple: its parts are constants

    def _write_trunk(self, results: list[fx.Node]) -> fx.GraphModule:
        graph = fx.Graph()
        copies: dict[fx.Node, fx.Node] = {}
        needed = _ancestors(results, lambda node: self.stages[node] in (Stage.TRUNK, Stage.SIZES))

        def inside(node: fx.Node) -> fx.Node:
            if node not in copies:
                copies[node] = self._constant(graph, node)
            return copies[node]

        for node in self.nodes:
            is_input = node.op == "placeholder" and node.target not in self.noises
            if is_input or (node in needed and node.op != "placeholder"):
                copies[node] = graph.node_copy(node, inside)
        graph.output(tuple(inside(node) for node in results))
        return fx.GraphModule(self.module, graph)


def _attribute(module: torch.nn.Module, target: str) -> Any:
    value: Any = module
    for part in target.split("."):
        value = getattr(value, part)
    return value


def _ancestors(nodes: list[fx.Node], belongs: Any) -> set[fx.Node]:
    found: set[fx.Node] = set()
    stack = [node for node in nodes if belongs(node)]
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack += [each for each in node.all_input_nodes if belongs(each)]
    return found
