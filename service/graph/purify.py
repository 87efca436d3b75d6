"""Turn in-place operations into functional ones, and refuse what cannot be proven pure; it does not know plans.

Which tensors share memory is read off one real run, not guessed from names: an operator such as `reshape` or `to` may
return its input or a copy. A write to a view is carried back to its base, and every other view of that base is taken
afresh before it is next used.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from service.errors import ImpureGraph
from service.graph.nodes import node_operand, operand, place_of
from service.graph.program import STATE_NAME, Program
from service.graph.sites import activation_site

aten = torch.ops.aten
_SAME_ORDER = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.alias.default, aten.detach.default,
    aten.contiguous.default, aten.view_as.default, aten.to.dtype, aten.to.device, aten._unsafe_view.default,
}  # fmt: skip


def purify(program: Program, example: tuple[Tensor, ...]) -> Program:
    """Return the program with every in-place operation functional.

    Args:
        program: The canonical graph; it is not changed.
        example: Inputs to run it on once.

    Raises:
        ImpureGraph: A write that cannot be carried back, or one to the network's own state.
    """
    recorder = _Recorder(program.graph)
    with torch.no_grad():
        recorder.run(*(each.clone() for each in example))
    graph = _Purifier(program, recorder.parents).run()
    return Program(fx.GraphModule(program.graph, graph), program.inputs, program.outputs)


class _Recorder(fx.Interpreter):
    """Run a graph and note for each node the argument whose memory it shares."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.parents: dict[fx.Node, fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target is activation_site:
            if len(n.args) == 1:
                return value.clone()
            self.parents[n] = node_operand(n)
            return value
        own = _storages(value)
        if n.op == "call_function" and own:
            for argument in n.all_input_nodes:
                if own & _storages(self.env.get(argument)):
                    self.parents[n] = argument
                    break
        return value


def _storages(value: Any) -> set[int]:
    if isinstance(value, Tensor):
        return {value.untyped_storage().data_ptr()} if value.numel() else set()
    if isinstance(value, (tuple, list)):
        return set().union(*(_storages(each) for each in value))
    return set()


class _Purifier:
    """One walk over the graph; `current` says which new node holds an old node's value at this point."""

    def __init__(self, program: Program, parents: dict[fx.Node, fx.Node]) -> None:
        self.old = program.graph.graph
        self.new = fx.Graph()
        self.parents = parents
        self.made: dict[fx.Node, tuple[fx.Node, int]] = {}  # old node → new node, version of its root then
        self.versions: dict[fx.Node, int] = {}

    def run(self) -> fx.Graph:
        for node in self.old.nodes:
            if node.op == "output":
                self.new.output(fx.map_arg(node.args[0], self.current))
            elif written := _written(node):
                self.write(node, written)
            else:
                self.keep(node, self.new.node_copy(node, self.current))
        self.new.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
        self.new.lint()
        return self.new

    def keep(self, old: fx.Node, new: fx.Node) -> None:
        self.made[old] = (new, self.versions.get(self.root(old), 0))

    def root(self, node: fx.Node) -> fx.Node:
        while node in self.parents:
            node = self.parents[node]
        return node

    def current(self, node: fx.Node) -> fx.Node:
        """Return the node's value now: taken afresh where its memory has been written since."""
        new, version = self.made[node]
        if node in self.parents and version != self.versions.get(self.root(node), 0):
            new = self.current(self.parents[node]) if _written(node) else self.new.node_copy(node, self.current)
            self.keep(node, new)
        return new

    def write(self, node: fx.Node, written: fx.Node) -> None:
        """Compute the write's result functionally and carry it back to the root."""
        root = self.root(written)
        if root.op == "get_attr":
            name = root.meta.get(STATE_NAME, root.target)
            raise ImpureGraph(
                f"{place_of(node)} writes to the network's own {name!r} while it runs, so one answer would depend on "
                "the ones before; keep normalisation layers in eval mode, or pass the state in and out"
            )
        result = self._functional(node)
        while written in self.parents:
            self.made[written] = (result, self.versions.get(root, 0) + 1)
            result = self._carry_back(node, written, result)
            written = self.parents[written]
        self.versions[root] = self.versions.get(root, 0) + 1
        self.made[root] = (result, self.versions[root])
        self.parents.setdefault(node, written)
        self.made[node] = (self.current(node_operand(node)), self.versions[root])

    def _functional(self, node: fx.Node) -> fx.Node:
        arguments = fx.map_arg(node.args, self.current)
        keywords = fx.map_arg(node.kwargs, self.current)
        target = activation_site if node.target is activation_site else _functional_form(node)
        copy = self.new.call_function(target, arguments[:1] if target is activation_site else arguments, keywords)
        copy.meta = dict(node.meta)
        return copy

    def _carry_back(self, write: fx.Node, view: fx.Node, value: fx.Node) -> fx.Node:
        """Return the view's parent with the view's entries replaced by `value`."""
        if _written(view):
            return value  # an in-place result is its operand
        parent = self.current(self.parents[view])
        inverse = _INVERSES.get(view.target, _reshape_back if view.target in _SAME_ORDER else None)
        if inverse is None:
            raise ImpureGraph(
                f"{place_of(write)} writes into a view made by {view.target}, which cannot be proven pure; "
                "write to a clone"
            )
        arguments = fx.map_arg(view.args[1:], self.current)
        whole = self.new.call_function(inverse, (value, parent, *arguments), fx.map_arg(view.kwargs, self.current))
        whole.meta = dict(parent.meta)
        return whole


def _written(node: fx.Node) -> fx.Node | None:
    """Return the node that this one writes to, if any."""
    if node.target is activation_site:
        return node_operand(node) if len(node.args) > 1 else None
    if not isinstance(node.target, torch._ops.OpOverload):
        return None
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            target = operand(node, position)
            if not isinstance(target, fx.Node) or position:
                raise ImpureGraph(
                    f"{place_of(node)} writes to {argument.name!r}; only plain in-place operations are known"
                )
            return target
    return None


def _functional_form(node: fx.Node) -> Callable[..., Any]:
    if node.target is aten.zero_.default:
        return torch.zeros_like
    assert isinstance(node.target, torch._ops.OpOverload)
    namespace, name = node.target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name.removesuffix("_"), None)
    form: Callable[..., Any] | None = getattr(packet, node.target._overloadname, None)
    if form is None:
        raise ImpureGraph(f"{place_of(node)} has no functional form; use the out-of-place operation")
    return form


def _reshape_back(value: Tensor, parent: Tensor, *_: Any, **__: Any) -> Tensor:
    return value.reshape(parent.shape).to(parent.dtype)


def _select_back(value: Tensor, parent: Tensor, dim: int, index: int) -> Tensor:
    return torch.select_scatter(parent, value, dim, index)


def _slice_back(
    value: Tensor, parent: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Tensor:
    return torch.slice_scatter(parent, value, dim, start, end, step)


def _narrow_back(value: Tensor, parent: Tensor, dim: int, start: int, length: int) -> Tensor:
    return torch.slice_scatter(parent, value, dim, start, start + length)


def _transpose_back(value: Tensor, parent: Tensor, first: int, second: int) -> Tensor:
    return value.transpose(first, second)


def _permute_back(value: Tensor, parent: Tensor, order: list[int]) -> Tensor:
    places = [axis % parent.dim() for axis in order]
    return value.permute([places.index(axis) for axis in range(parent.dim())])


_INVERSES: dict[Any, Callable[..., Tensor]] = {
    aten.select.int: _select_back,
    aten.slice.Tensor: _slice_back,
    aten.narrow.default: _narrow_back,
    aten.transpose.int: _transpose_back,
    aten.t.default: lambda value, parent: value.t(),
    aten.permute.default: _permute_back,
}
