"""Find every place where a network can be random, and write the graph so that each stands alone as a site.

It does not know variants' mathematics or what a plan will switch on. In the canonical graph each activation site is one
`activation_site` node, which is the identity: the graph as it stands is the network with everything off.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from service.dropout import BY_NAME, Kind
from service.dropout.variant import PairedVariant, PoolVariant
from service.dropout.windows import Window, maximum
from service.errors import CaptureFailed
from service.graph.nodes import module_of, place_of, value_of
from service.graph.program import Program
from service.graph.shapes import BatchAxis, Dims, Symbols, find_batch, row_dims

_PLAIN_POOL = 6  # arguments: a value and a geometry

Trained = tuple[str, float | None, tuple[tuple[str, float], ...]]
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
        parameters: The variant's other parameters that it was trained with, by name.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    variant: str | None = None
    p: float | None = None
    parameters: tuple[tuple[str, float], ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether it was random in training."""
        return self.variant is not None and self.p != 0

    @property
    def trained_as(self) -> str:
        """The variant and rate that it was trained with, in words; nothing where there is none."""
        rate = f", p = {self.p:g}" if self.p else ""
        return f"{self.variant}{rate}" if self.is_trained else ""


@dataclass(frozen=True)
class LocatedSite:
    """A site and where its rows are in the tensor.

    Attributes:
        site: The site.
        dims: The tensor's shape.
        batch: Where its rows are.
    """

    site: Site
    dims: Dims
    batch: BatchAxis | None

    @property
    def channel_axes(self) -> int:
        """How many axes of a row number its channels: the first two of the tensor, less the batch among them."""
        is_plain = self.batch is not None and self.batch.axis < 2 and self.batch.factor == 1
        return 1 if is_plain else 2


def activation_site(x: Tensor, inplace: bool = False) -> Tensor:
    """Stand for a site that is off: the identity."""
    return x


def paired_site(first: Tensor, second: Tensor, variant: str, *parameters: float) -> Tensor:
    """Stand for a site on two tensors that is off: the eval form of the layer that it was trained with."""
    trained = BY_NAME[variant](*parameters)
    assert isinstance(trained, PairedVariant)
    return trained.off(first, second)


def pool_site(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int],
    ceil: bool, variant: str | None = None, *parameters: float,
) -> Tensor:  # fmt: skip
    """Stand for a pooling layer that is off: plain max pooling, or the eval form of the layer it was trained as."""
    window = Window.of(len(kernel), kernel, stride, padding, dilation, ceil)
    if variant is None:
        return maximum(x, window)
    trained = BY_NAME[variant](*parameters)
    assert isinstance(trained, PoolVariant)
    return trained.mean(x, window)


def is_plain_pool(node: fx.Node) -> bool:
    """Tell whether a node is plain max pooling: a site that is off, and was trained as nothing else."""
    return node.target is pool_site and len(node.args) == _PLAIN_POOL


SITES = (activation_site, paired_site, pool_site)


@dataclass
class Canon:
    """A program while its sites are being written out.

    Attributes:
        program: The graph, rewritten in place.
        symbols: Its shapes' symbols.
        trained: Variant, rate and other parameters that an operator gave a weight, by the parameter's node.
    """

    program: Program
    symbols: Symbols
    names: Counter[str] = field(default_factory=Counter)
    trained: dict[fx.Node, Trained] = field(default_factory=dict)

    @property
    def graph(self) -> fx.Graph:
        """The graph."""
        return self.program.graph.graph

    def place(
        self, at: fx.Node, x: fx.Node, dims: Dims, kind: Kind, variant: str | None, p: float | None, what: str,
        inplace: bool = False, parameters: tuple[tuple[str, float], ...] = (), before: fx.Node | None = None,
    ) -> fx.Node:  # fmt: skip
        """Insert a site on x before node `at`, or another one, named after the module that `at` came from."""
        try:
            batch = find_batch(dims)
        except ValueError as error:
            raise CaptureFailed(f"{place_of(at)}: {error}; put the batch on an axis of its own") from None
        shape = row_dims(dims, batch)
        site = Site(self.name(at, what), kind, self.plain(shape), variant, p, parameters)
        with self.graph.inserting_before(before or at):
            node = self.graph.call_function(activation_site, (x, True) if inplace else (x,))
        value = {"val": x.meta["val"]} if "val" in x.meta else {}
        node.meta = {**_without_value(at), **value, SITE: LocatedSite(site, dims, batch)}
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
        return self.symbols.dims(value_of(node))

    def replace(self, old: fx.Node, new: fx.Node) -> None:
        """Let `new` stand for `old` everywhere after it."""
        old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
        if "val" in old.meta:
            new.meta.setdefault("val", old.meta["val"])
        self.graph.erase_node(old)


def site_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the activation sites in order."""
    return [node for node in graph.nodes if node.target in SITES]


def _without_value(node: fx.Node) -> dict[str, Any]:
    return {key: value for key, value in node.meta.items() if key != "val"}


def _is_own_module(cls: str, what: str) -> bool:
    module, _, short = cls.lower().rpartition(".")
    is_activation = module == "torch.nn.modules.activation" and short != "multiheadattention"
    drops = ("drop" in short or "stochasticdepth" in short) and not what.startswith("layer_")
    is_pool = module == "torch.nn.modules.pooling" or (module.startswith("service.dropout.") and "pool" in short)
    return drops or is_activation or is_pool
