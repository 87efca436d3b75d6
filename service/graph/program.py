"""An exported program as a plain graph: user inputs in, tensors out, state inside; it does not know sites.

`ExportedProgram.module()` adds a guard function and input hooks, and `run_decompositions()` erases eval dropout, so the
undecomposed graph is copied node by node instead. Nested graphs that change nothing at inference are inlined.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, is_dataclass, replace
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind
from torch.utils import _pytree as pytree

from service.errors import CaptureFailed, ImpureGraph
from service.graph.nodes import getitems, node_operand, returned

_STATE = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_NAME_LENGTH = 48
STATE_NAME = "state_name"  # node.meta key: the state's name in the user's module


@dataclass(frozen=True)
class Program:
    """A network as a plain graph.

    Attributes:
        graph: Placeholders are the user's inputs in order; the output is a tuple of tensors.
        inputs: The inputs' names.
        outputs: The outputs' names.
    """

    graph: fx.GraphModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def placeholders(self) -> list[fx.Node]:
        """Return the input nodes in order."""
        return self.graph.graph.find_nodes(op="placeholder")


def read_program(exported: ExportedProgram) -> Program:
    """Copy an exported program into a plain graph.

    Raises:
        CaptureFailed: An input is not a tensor, or an output is an integer or not a tensor.
        ImpureGraph: The network writes to its own buffers.
    """
    root = torch.nn.Module()
    for name, child in exported.graph_module.named_children():
        root.add_module(name, child)
    graph = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    _copy_inputs(exported, graph, root, copies)
    result = graph.graph_copy(exported.graph, copies)
    keep = _kept_outputs(exported)
    graph.output(tuple(result[index] for index in keep))  # type: ignore[index] # an exported graph returns a tuple
    module = fx.GraphModule(root, graph)
    _inline_nested(module)
    names = _output_names(exported)
    inputs = tuple(str(node.target) for node in module.graph.find_nodes(op="placeholder"))
    program = Program(module, inputs, tuple(names[index] for index in keep))
    _check_outputs(program)
    return program


def plain_outputs(exported: ExportedProgram, program: Program) -> ExportedProgram:
    """Return the program for saving: without its example, and its outputs a plain dict whatever class held them."""
    spec = exported.call_spec.out_spec
    names = [name or f"unused_{index}" for index, name in enumerate(_output_names(exported))]
    plain = copy.copy(exported)
    plain._example_inputs = None
    if spec is not None and not _is_plain(spec):
        first, *rest = exported.module_call_graph
        assert first.signature is not None
        signature = replace(first.signature, out_spec=pytree.tree_structure(dict.fromkeys(names, 0)))
        plain._module_call_graph = [replace(first, signature=signature), *rest]
    return plain


def _is_plain(spec: pytree.TreeSpec) -> bool:
    """Tell whether a nesting is of tuples, lists and dicts alone, which a file may name."""
    return spec.type in (dict, tuple, list, None) and all(map(_is_plain, spec.children()))


def _copy_inputs(exported: ExportedProgram, graph: fx.Graph, root: torch.nn.Module, copies: dict[fx.Node, Any]) -> None:
    state: Mapping[str, Any] = {**exported.state_dict, **exported.constants}
    placeholders = exported.graph.find_nodes(op="placeholder")
    for index, (node, spec) in enumerate(zip(placeholders, exported.graph_signature.input_specs, strict=True)):
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument):
            copies[node] = graph.node_copy(node)
        elif spec.kind is InputKind.USER_INPUT:
            copies[node] = spec.arg.value
        elif spec.kind in _STATE and spec.target in state:
            copies[node] = _state_node(graph, root, f"state_{index}", state[spec.target].detach(), node, spec.target)
        else:
            raise CaptureFailed(f"input {node.name!r} is a {spec.kind.name}, not a tensor; pass tensors only")


def _state_node(
    graph: fx.Graph, root: torch.nn.Module, attribute: str, value: Tensor, node: fx.Node, name: str
) -> fx.Node:
    root.register_buffer(attribute, value)
    copy = graph.get_attr(attribute)
    copy.meta = {**node.meta, STATE_NAME: name}
    return copy


def _kept_outputs(exported: ExportedProgram) -> list[int]:
    keep = []
    for index, spec in enumerate(exported.graph_signature.output_specs):
        if spec.kind is OutputKind.BUFFER_MUTATION:
            raise ImpureGraph(
                f"the network writes to its buffer {spec.target!r} while it runs; put normalisation layers in eval "
                "mode before exporting, or pass the state in and out"
            )
        if spec.kind is OutputKind.USER_OUTPUT and not isinstance(spec.arg, ConstantArgument):
            keep.append(index)
    return keep


def _output_names(exported: ExportedProgram) -> list[str]:
    specs = exported.graph_signature.output_specs
    user = [index for index, spec in enumerate(specs) if spec.kind is OutputKind.USER_OUTPUT]
    spec = exported.call_spec.out_spec
    paths = _leaf_paths(pytree.tree_unflatten(list(range(len(user))), spec)) if spec is not None else iter(())
    names = [""] * len(specs)
    for path, leaf in paths:
        names[user[leaf]] = _unused(_as_name(path or "output"), names)
    return names


def _as_name(path: str) -> str:
    """Return a path as a name that a request may carry: letters, digits and `._-`, a letter or `_` in front."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", path)[:_NAME_LENGTH]
    return plain if plain[0].isalpha() or plain[0] == "_" else f"output_{plain}"


def _unused(name: str, names: list[str]) -> str:
    return name if name not in names else next(each for k in count(2) if (each := f"{name}_{k}") not in names)


def _leaf_paths(tree: Any, path: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(tree, int):
        yield path, tree
        return
    for key, leaf in _children(tree):
        yield from _leaf_paths(leaf, f"{path}_{key}" if path else str(key))


def _children(tree: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        return tree.items()
    if is_dataclass(tree):
        return vars(tree).items()
    leaves = pytree.tree_leaves(tree, is_leaf=lambda each: each is not tree)
    return zip(getattr(tree, "_fields", [f"output_{i}" for i in range(len(leaves))]), leaves, strict=True)


def _check_outputs(program: Program) -> None:
    output = program.graph.graph.output_node().args[0]
    if not isinstance(output, tuple) or not output:
        raise CaptureFailed("the network returns no tensor; return at least one")
    for name, node in zip(program.outputs, output, strict=True):
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, Tensor):
            raise CaptureFailed(f"output {name!r} is not a tensor; return tensors only")
        if not value.dtype.is_floating_point:
            raise CaptureFailed(
                f"output {name!r} is {value.dtype}; a mean and a variance need floating-point outputs: return the "
                "scores that the integers were chosen from"
            )


def _inline_nested(module: fx.GraphModule) -> None:
    """Inline what only switches gradients, or switches autocast off; both change nothing here."""
    changed = True
    while changed:
        changed = False
        for node in list(module.graph.nodes):
            position = _body_position(node)
            if position is not None:
                _inline(module, node, position)
                changed = True
    module.recompile()


def _body_position(node: fx.Node) -> int | None:
    if node.op != "call_function":
        return None
    if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
        return 1
    if node.target is torch.ops.higher_order.wrap_with_autocast and node.args[2] is False:
        return 4
    return None


def _inline(module: fx.GraphModule, node: fx.Node, position: int) -> None:
    body_node = node_operand(node, position)
    body = module.get_submodule(str(body_node.target))
    assert isinstance(body, fx.GraphModule)
    inner = body.graph.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = dict(zip(inner, node.args[position + 1 :], strict=True))
    for name, child in body.named_children():
        module.add_module(f"{node.name}_{name}", child)
    with module.graph.inserting_before(node):
        for each in body.graph.nodes:
            if each.op in ("placeholder", "output"):
                continue
            copies[each] = module.graph.node_copy(each, lambda old: copies[old])
            if each.op == "get_attr":
                copies[each].target = f"{node.name}_{each.target}"
    results = [copies[each] for each in returned(body.graph)]
    for index, user in getitems(node):
        user.replace_all_uses_with(results[index])
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not body_node.users:
        module.graph.erase_node(body_node)


def drop_traces(program: ExportedProgram) -> None:
    """Drop the stack traces: they name the directories of the machine that exported the network."""
    for module in program.graph_module.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)
