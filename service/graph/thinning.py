"""Write a suffix that runs one pass on the units it keeps: of each weight only the columns and rows that survive.

A site that drops whole units or channels leaves the rest of a value, which is carried in that form through whatever
treats channels by themselves; the next product takes the weight's columns of those channels. Where a product's result
goes through such operators into another such site alone, it computes the rows that this site keeps. Wherever anything
else reads a value, it is spread out again first. It does not know where noise comes from or whether it pays.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from operator import attrgetter

import sympy
import torch
from torch import Tensor, fx

from service.dropout.variant import ActivationVariant
from service.graph.acting import Apply
from service.graph.channelwise import flattens, is_channelwise, is_proportional, product_axes
from service.graph.kept import (
    Scratch,
    kept_units,
    laid_by_unit,
    scale_units,
    select_outputs,
    select_units,
    select_weight,
    spread_units,
)
from service.graph.nodes import is_tensor, node_operand, operand, value_of
from service.graph.passes import Values
from service.graph.precision import narrow
from service.graph.rewrite import NoiseInput
from service.graph.scaled_convolution import shares_value
from service.graph.shapes import BatchAxis
from service.graph.split import Split


@dataclass(frozen=True)
class Product:
    """A product whose weight is thinned, or could be.

    Attributes:
        name: Its node's.
        result: What the export recorded of its whole result; None where nothing is known.
        weight: Elements of its whole weight.
        depth: How many of them make one element of the result.
        features: How many features or channels it reads.
        inputs: Index of the noise whose units its inputs are, if they are thinned.
        outputs: Index of the noise whose units its outputs are, if they are.
        is_whole: Whether it is left as it is.
        taps: Of how many of each channel passes of whole values together would need one (see `scaled_convolution`).
    """

    name: str
    result: Tensor | None
    weight: int
    depth: int
    features: int
    inputs: int | None
    outputs: int | None
    is_whole: bool
    taps: int = 1


@dataclass(frozen=True)
class Thinned:
    """A suffix for one pass on the units that it keeps.

    Attributes:
        module: (boundary values …, rows, noises …, scratch) → outputs; the noise of a thinned site is what it keeps.
        sites: For each noise, whether its site is thinned.
        products: The products that are, and those that are left whole.
        nodes: How many operators a pass calls.
        picked: Indices of boundary values of rows and units that passes do nothing with but pick units from.
    """

    module: fx.GraphModule
    sites: tuple[bool, ...]
    products: tuple[Product, ...]
    nodes: int
    picked: frozenset[int]

    def run(self, values: Values, noises: Sequence[Tensor], rows: int) -> list[Tensor]:
        """Run the passes one by one, in scope `pass`; every output [S, B, …]."""
        own = [kept_units(noise) if thins else noise for noise, thins in zip(noises, self.sites, strict=True)]
        passes, scratch = range(len(noises[0])), Scratch()
        laid = [laid_by_unit(value) if index in self.picked else value for index, value in enumerate(values)]
        results = [self.module.forward(*laid, rows, *(noise[index] for noise in own), scratch) for index in passes]
        return [torch.stack(each) for each in zip(*results, strict=True)]


def thin(split: Split, noises: Sequence[NoiseInput], whole: AbstractSet[str] = frozenset()) -> Thinned | None:
    """Return the thinned suffix; None where no product would be thinner.

    Args:
        split: The cut.
        noises: The noise of each site.
        whole: Products that are left as they are, by name.
    """
    thinner = _Thinner(split.suffix, noises, whole)
    module = thinner.run()
    sites = tuple(noise.placeholder in {site.noise for site in thinner.sites.values()} for noise in noises)
    count = sum(node.op == "call_function" for node in module.graph.nodes)
    picked = frozenset(index for index, node in enumerate(_placeholders(module)) if _is_picked_from(node))
    products = tuple(thinner.products)
    return None if all(each.is_whole for each in products) else Thinned(module, sites, products, count, picked)


@dataclass(frozen=True)
class _Units:
    """What a site keeps: the noise's placeholder, how many units, a row's axes; whether the value is scaled already."""

    noise: str
    units: int
    axes: int
    scaled: bool = False


class _Thinner:
    def __init__(self, module: fx.GraphModule, noises: Sequence[NoiseInput], whole: AbstractSet[str]) -> None:
        self.module, self.whole = module, whole
        self.order = {noise.placeholder: index for index, noise in enumerate(noises)}
        self.graph = fx.Graph()
        by_name = {noise.placeholder: noise for noise in noises}
        self.sites = {node: units for node in module.graph.nodes if (units := _units(node, by_name))}
        self.needed: dict[fx.Node, fx.Node] = {}  # node → the site that alone reads it
        self.copies: dict[fx.Node, fx.Node] = {}
        self.carried: dict[fx.Node, _Units] = {}  # nodes whose copy holds the kept units alone, not yet scaled
        self.wholes: dict[fx.Node, fx.Node] = {}
        self.products: list[Product] = []
        self.kept: dict[str, fx.Node] = {}
        self.scratch: fx.Node | None = None

    def run(self) -> fx.GraphModule:
        for site in self.sites:
            self._look_back(site)
        for node in self.module.graph.nodes:
            if node.op != "placeholder" and self.scratch is None:
                self.scratch = self.graph.placeholder("scratch")
            self._write(node)
        self.graph.eliminate_dead_code()
        self.graph.lint()
        return fx.GraphModule(self.module, self.graph)

    def _look_back(self, site: fx.Node) -> None:
        """Note what is computed for this site alone, back to the product that it comes from."""
        axes, node = self.sites[site].axes, node_operand(site, 2)
        while node.op == "call_function" and len(node.users) == 1:
            if product_axes(node) == axes:
                self.needed[node] = site  # left whole, its units are picked behind it
                return
            if not is_channelwise(node, axes):
                return
            self.needed[node] = site
            node = node_operand(node)

    def _write(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            self.copies[node] = self.kept[str(node.target)] = self.graph.node_copy(node)
        elif node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], self._whole))
        elif node in self.sites:
            self.copies[node] = self._reduced(node_operand(node, 2), node)
            self.carried[node] = self.sites[node]
        elif product_axes(node) is not None:
            self._product(node)
        elif node in self.needed:
            self._channelwise(node, self.needed[node])
        else:
            self._other(node)

    def _reduced(self, node: fx.Node, site: fx.Node) -> fx.Node:
        """Return a value at the units that a site keeps."""
        if self.needed.get(node) is site:
            return self.copies[node]
        return self.graph.call_function(select_units, (self._whole(node), self._kept(self.sites[site])))

    def _channelwise(self, node: fx.Node, site: fx.Node) -> None:
        table = {node_operand(node): self._reduced(node_operand(node), site)}
        for each in node.all_input_nodes[1:]:
            table[each] = self.graph.call_function(select_outputs, (self.copies[each], self._kept(self.sites[site])))
        self.copies[node] = self.graph.node_copy(node, table.__getitem__)
        if node.target is torch.ops.aten.relu.default:
            self.copies[node].target = torch.ops.aten.relu_.default  # of what nothing else reads

    def _product(self, node: fx.Node) -> None:
        x, weight, bias = node_operand(node), node_operand(node, 1), operand(node, 2)
        source = self.carried.get(x)
        source = source if source is not None and source.axes == product_axes(node) else None
        site = self.needed.get(node)
        if source is None and site is None:
            self._other(node)
            return
        self._note(node, source, self.sites[site] if site else None)
        if node.name in self.whole:
            self.needed.pop(node, None)
            self._other(node)
            return
        inputs = self._kept(source) if source else None
        outputs = self._kept(self.sites[site]) if site else None
        units, scaled = (source.units, source.scaled) if source else (0, False)
        table = {x: self.copies[x] if source else self._whole(x)}
        place = self.scratch, len(self.products) - 1
        table[weight] = self.graph.call_function(
            select_weight, (self.copies[weight], outputs, inputs, units, scaled, *place)
        )
        if isinstance(bias, fx.Node):
            own = self.copies[bias]
            table[bias] = own if outputs is None else self.graph.call_function(select_outputs, (own, outputs))
        self.copies[node] = self.graph.node_copy(node, table.__getitem__)

    def _note(self, node: fx.Node, inputs: "_Units | None", outputs: "_Units | None") -> None:
        weight = attrgetter(str(node_operand(node, 1).target))(self.module)
        result = value_of(node) if is_tensor(node) else None
        before, behind = (self.order[each.noise] if each else None for each in (inputs, outputs))
        sizes, is_whole = (weight.numel(), weight[0].numel(), weight.shape[1]), node.name in self.whole
        is_shared = node.target is torch.ops.aten.conv2d.default and shares_value(node_operand(node))
        taps = weight[0, 0].numel() if is_shared and operand(node, 6, 1) == 1 else 1
        self.products.append(Product(node.name, result, *sizes, before, behind, is_whole, taps))

    def _other(self, node: fx.Node) -> None:
        """Carry the kept units on where a value's channels are treated alike, else spread them out."""
        source = self.carried.get(node.all_input_nodes[0]) if len(node.all_input_nodes) == 1 else None
        if source is not None and node.target is narrow:
            self._scale(node_operand(node))
            self.carried[node] = self.carried[node_operand(node)]
        elif source is not None and is_proportional(node, source.axes):
            self.carried[node] = source
        elif isinstance(node.args[0] if node.args else None, fx.Node) and flattens(node):
            source = self.carried.get(node_operand(node))
            if source is not None:
                self.carried[node] = replace(source, axes=1)
        if node in self.carried or _is_count_of_rows(node):
            self.copies[node] = self.graph.node_copy(node, self.copies.__getitem__)
        else:
            self.copies[node] = self.graph.node_copy(node, self._whole)

    def _scale(self, node: fx.Node) -> None:
        """Put the scale into a value that holds the kept units alone, from here on."""
        own = self.carried[node]
        if not own.scaled:
            self.copies[node] = self.graph.call_function(scale_units, (self.copies[node], self._kept(own)))
            self.carried[node] = replace(own, scaled=True)

    def _whole(self, node: fx.Node) -> fx.Node:
        if node not in self.carried:
            return self.copies[node]
        if node not in self.wholes:
            own = self.carried[node]
            arguments = (self.copies[node], self._kept(own), own.units, own.scaled)
            self.wholes[node] = self.graph.call_function(spread_units, arguments)
        return self.wholes[node]

    def _kept(self, units: _Units) -> fx.Node:
        return self.kept[units.noise]


def _units(node: fx.Node, noises: dict[str, NoiseInput]) -> _Units | None:
    """Return the units of a site that drops whole units or channels on axis 1; None for any other node."""
    acting = node.target
    if not isinstance(acting, Apply) or acting.batch != BatchAxis(0):
        return None
    noise = noises[str(node_operand(node, 1).target)]
    variant = noise.variant  # what is drawn: counted noise tells no unit that it keeps
    if not isinstance(variant, ActivationVariant) or not variant.zeroes or noise.channel_axes != 1:
        return None
    by_unit = len(noise.dims) == 1 or variant.per_channel
    is_fixed = bool(noise.dims) and isinstance(noise.dims[0], sympy.Integer)
    return _Units(noise.placeholder, int(noise.dims[0]), len(noise.dims)) if by_unit and is_fixed else None


def _placeholders(module: fx.GraphModule) -> list[fx.Node]:
    return module.graph.find_nodes(op="placeholder")


def _is_picked_from(node: fx.Node) -> bool:
    """Tell whether a value is read by nothing but the picking of units."""
    return bool(node.users) and all(user.target is select_units for user in node.users)


def _is_count_of_rows(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.sym_size.int and operand(node, 1) == 0
