"""Find every place where a network can be random, and write the graph so that each stands alone as a site.

It does not know variants' mathematics or what a plan will switch on. In the canonical graph each activation site is one
`activation_site` node, which is the identity: the graph as it stands is the network with everything off.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from service.dropout import Kind
from service.errors import CaptureFailed
from service.graph.program import STATE_NAME, Program
from service.graph.shapes import BatchAxis, Dims, Symbols, find_batch, row_dims

SITE = "site"  # node.meta key: the LocatedSite


@dataclass(frozen=True)
class Site:
    """A place where a variant can act.

    Attributes:
        name: Module path and call ordinal, the same after saving.
        kind: What it is.
        shape: Its shape for one row, -1 where the length varies; (out, in + biases) for a weight.
        variant: The variant it was trained with, or None.
        p: The rate it was trained with, or None.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    variant: str | None = None
    p: float | None = None


@dataclass(frozen=True)
class LocatedSite:
    """A site and where its rows are in the tensor."""

    site: Site
    dims: Dims
    batch: BatchAxis | None


@dataclass
class Use:
    """One linear layer's use of a weight."""

    node: fx.Node
    bias: fx.Node | None


@dataclass
class WeightSite:
    """A weight, everything that uses it, and how it was trained."""

    site: Site
    parameter: fx.Node
    uses: list[Use]
    columns: dict[str, int]  # bias state name → its column of the noise
    rows_and_features: bool  # one use, on [B, in]: sampled inference may serve it


def activation_site(x: Tensor, inplace: bool = False) -> Tensor:
    """Stand for a site that is off: the identity."""
    return x


@dataclass
class Canon:
    """A program while its sites are being written out.

    Attributes:
        program: The graph, rewritten in place.
        symbols: Its shapes' symbols.
        trained: Variant and rate that an operator gave a weight, by the parameter's node.
    """

    program: Program
    symbols: Symbols
    names: Counter[str] = field(default_factory=Counter)
    trained: dict[fx.Node, tuple[str, float]] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The graph."""
        return self.program.graph.graph

    def place(
        self, at: fx.Node, x: fx.Node, dims: Dims, kind: Kind, variant: str | None, p: float | None, what: str,
        inplace: bool = False,
    ) -> fx.Node:  # fmt: skip
        """Insert a site on x before node `at`, named after the module that `at` came from."""
        try:
            batch = find_batch(dims)
        except ValueError as error:
            raise CaptureFailed(f"{place_of(at)}: {error}; put the batch on an axis of its own") from None
        shape = row_dims(dims, batch)
        site = Site(self.name(at, what), kind, self.plain(shape), variant, p)
        with self.graph.inserting_before(at):
            node = self.graph.call_function(activation_site, (x, True) if inplace else (x,))
        node.meta = {**at.meta, SITE: LocatedSite(site, dims, batch)}
        return node

    def name(self, node: fx.Node, what: str) -> str:
        """Return module path (and what, where the module is not that very thing) with the call's ordinal."""
        path, cls = module_of(node)
        base = path if path and _is_own_module(cls, what) else f"{path}.{what}".lstrip(".")
        self.names[base] += 1
        return base if self.names[base] == 1 else f"{base}#{self.names[base]}"

    def plain(self, dims: Dims) -> tuple[int, ...]:
        """Return dims as integers, -1 where the length varies."""
        return tuple(-1 if self.symbols.is_growing(dim) else int(dim) for dim in dims)

    def dims(self, node: fx.Node) -> Dims:
        """Return a node's recorded shape."""
        return self.symbols.dims(node.meta["val"])

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let `new` stand for `old` everywhere after it."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        if "val" in old.meta:
            new.meta.setdefault("val", old.meta["val"])
        self.graph.erase_node(old)


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


def site_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the activation sites in order."""
    return list(graph.find_nodes(op="call_function", target=activation_site))


def _is_own_module(cls: str, what: str) -> bool:
    short = cls.rsplit(".", 1)[-1].lower()
    return "drop" in short or "stochasticdepth" in short or what in ("path",)


LINEAR = torch.ops.aten.linear.default
_PRODUCTS = {torch.ops.aten.matmul.default, torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
_TRANSPOSES = {
    torch.ops.aten.t.default,
    torch.ops.aten.transpose.int,
    torch.ops.aten.permute.default,
    torch.ops.aten.numpy_T.default,
}


def find_weights(canon: Canon) -> list[WeightSite]:
    """Find every linear weight: one site for each parameter, however many layers use it."""
    found: dict[str, list[Use]] = {}
    parameters: dict[str, fx.Node] = {}
    for node in canon.graph.nodes:
        parameter = _weight_of(node)
        if parameter is not None:
            state = parameter.meta[STATE_NAME]
            bias = node.args[2] if node.target is LINEAR and len(node.args) > 2 else None
            parameters.setdefault(state, parameter)
            found.setdefault(state, []).append(Use(node, bias if isinstance(bias, fx.Node) else None))
    return [_weight_site(canon, state, parameters[state], uses) for state, uses in found.items()]


def _weight_of(node: fx.Node) -> fx.Node | None:
    """Return the parameter that a product multiplies by, if it is one."""
    if node.op != "call_function":
        return None
    if node.target is LINEAR:
        candidates = [node.args[1]]
    elif node.target in _PRODUCTS:
        candidates = [arg.args[0] if isinstance(arg, fx.Node) and arg.target in _TRANSPOSES else arg for arg in node.args]
    else:
        return None
    for candidate in candidates:
        if isinstance(candidate, fx.Node) and candidate.op == "get_attr" and STATE_NAME in candidate.meta:
            if candidate.meta["val"].dim() == 2 and candidate.meta["val"].dtype.is_floating_point:
                return candidate
    return None


def _weight_site(canon: Canon, state: str, parameter: fx.Node, uses: list[Use]) -> WeightSite:
    out, columns_in = (int(size) for size in parameter.meta["val"].shape)
    biases = [use.bias.meta[STATE_NAME] for use in uses if use.bias is not None and STATE_NAME in use.bias.meta]
    columns = {name: columns_in + index for index, name in enumerate(dict.fromkeys(biases))}
    variant, p = canon.trained.get(parameter, (None, None))
    site = Site(state, Kind.WEIGHT, (out, columns_in + len(columns)), variant, p)
    return WeightSite(site, parameter, uses, columns, _serves_rows_and_features(canon, parameter, uses))


def _serves_rows_and_features(canon: Canon, parameter: fx.Node, uses: list[Use]) -> bool:
    if len(uses) != 1 or uses[0].node.target is not LINEAR or len(parameter.users) != 1:
        return False
    x = uses[0].node.args[0]
    assert isinstance(x, fx.Node)
    try:
        batch = find_batch(canon.dims(x))
    except ValueError:
        return False
    return len(canon.dims(x)) == 2 and batch == BatchAxis(0)


def operand(node: fx.Node, index: int, default: Any = None) -> Any:
    """Return a node's positional argument, or its schema's default."""
    return node.args[index] if len(node.args) > index else default
