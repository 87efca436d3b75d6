"""Write a plan into the canonical graph: each active site becomes `apply(x, noise)`, its noise an input of the graph.

It does not know how noise is drawn or how passes run together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from operator import getitem
from typing import Any

import sympy
import torch
from torch import fx

from service.dropout import Variant
from service.dropout.variant import (
    ActivationVariant,
    CellVariant,
    MaskedWeight,
    PairedVariant,
    PoolVariant,
    SampledProduct,
)
from service.errors import InvalidPlan
from service.graph.acting import Apply
from service.graph.bit_masks import NoisyProduct, biases_of, join_columns
from service.graph.capture import Captured
from service.graph.cells import CellSite, write_cell
from service.graph.forms import Form
from service.graph.images import check_image
from service.graph.kernels.counted_sites import CountedApply, CountedNoise
from service.graph.layout import LAYOUT, Layout
from service.graph.nodes import node_operand, operand, value_of
from service.graph.noisy_weights import LookUp, MaskColumns, check_use, stand_in
from service.graph.pools import Pooling
from service.graph.precision import BFLOAT16, FLOAT32, NARROWED, Narrower
from service.graph.program import STATE_NAME
from service.graph.shapes import BatchAxis, Dims, row_dims
from service.graph.sites import SITE, SITES, activation_site
from service.graph.weights import WeightSite, readers

ROWS = "rows"


@dataclass(frozen=True)
class NoiseInput:
    """A noise input of the rewritten graph.

    Attributes:
        placeholder: Its name in the graph.
        site: The site it is for.
        variant: What draws it.
        dims: The site's shape for one row.
        has_rows: Whether the site's tensor has a batch axis; a weight's has none.
        channel_axes: How many axes of a row number its channels.
    """

    placeholder: str
    site: str
    variant: Variant
    dims: Dims
    has_rows: bool
    channel_axes: int = 1


@dataclass(frozen=True)
class Rewritten:
    """A graph whose placeholders are the inputs, the number of rows, and the noise of every active site.

    Attributes:
        module: The graph.
        noises: What is drawn for it.
        notes: What the caller should know of it.
        refused: Why a site's noise is not in the form that was given, by the site's name.
    """

    module: fx.GraphModule
    noises: tuple[NoiseInput, ...]
    notes: tuple[str, ...]
    refused: Mapping[str, str]


def rewrite(
    captured: Captured, plan: Mapping[str, Variant], form: Form | None = None, precision: str = FLOAT32
) -> Rewritten:
    """Return the graph of a plan.

    Args:
        captured: The network, its layouts noted.
        plan: The variant of each active site, by name; sites left out are off.
        form: In what form noise is drawn, where it can be; plainly where None.
        precision: What products run in.

    Raises:
        InvalidPlan: Rows cannot be told apart at an active site.
    """
    old = captured.program.graph
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {node: graph.node_copy(node) for node in captured.program.placeholders()}
    rows = graph.placeholder(ROWS)
    writer = _Writer(graph, rows, copies, form)
    writer.narrower = Narrower(graph) if precision == BFLOAT16 else None
    weights = [site for site in captured.weights if site.site.name in plan]
    writer.declare(captured, plan, weights)
    for node in old.graph.nodes:
        if node.op != "placeholder":
            writer.write(node)
    graph.lint()
    return Rewritten(fx.GraphModule(old, graph), tuple(writer.noises), tuple(writer.notes), writer.refused)


class _Writer:
    def __init__(self, graph: fx.Graph, rows: fx.Node, copies: dict[fx.Node, fx.Node], form: Form | None) -> None:
        self.graph, self.rows, self.copies, self.form = graph, rows, copies, form
        self.narrower: Narrower | None = None
        self.noises: list[NoiseInput] = []
        self.notes: list[str] = []
        self.refused: dict[str, str] = {}
        self.variants: dict[fx.Node, tuple[Variant, fx.Node]] = {}  # activation site → its variant and noise
        self.counted: dict[fx.Node, CountedNoise] = {}  # activation site → what draws its noise, where kernels make it
        self.products: dict[fx.Node, tuple[SampledProduct, fx.Node]] = {}  # linear → its variant and noise
        self.noisy_products: dict[
            fx.Node, tuple[NoisyProduct[Any], WeightSite, fx.Node]
        ] = {}  # layer → what stands for it
        self.lookups: dict[fx.Node, tuple[LookUp, fx.Node]] = {}  # embedding → its variant and noise
        self.masks: dict[tuple[fx.Node, fx.Node], tuple[MaskColumns, fx.Node]] = {}  # (parameter, use) → its mask
        self.cells: dict[fx.Node, tuple[CellSite, CellVariant, fx.Node]] = {}  # layer → its site, variant and noise
        self.unpruned: dict[fx.Node, fx.Node] = {}  # what a mask acts on instead of a pruned weight
        self.learned: dict[MaskColumns, fx.Node] = {}  # the log variance that a mask takes
        self.masked: dict[tuple[fx.Node, MaskColumns], fx.Node] = {}

    def declare(self, captured: Captured, plan: Mapping[str, Variant], weights: list[WeightSite]) -> None:
        """Make the noise placeholders, which stand before all other nodes."""
        for node in captured.program.graph.graph.nodes:
            if node.target in SITES and node.meta[SITE].site.name in plan:
                located = node.meta[SITE]
                variant, layout = plan[located.site.name], node.meta[LAYOUT]
                if layout.entangled or any(each.meta[LAYOUT] != layout for each in node.all_input_nodes):
                    raise InvalidPlan(f"site {located.site.name!r}: rows cannot be told apart there; switch it off")
                if variant.on_images:
                    check_image(node, variant.name)
                is_of_result = isinstance(variant, PoolVariant) and variant.per_window
                of = captured.symbols.dims(value_of(node)) if is_of_result else located.dims
                dims = row_dims(of, located.batch)
                has_rows = layout.batch is not None
                name, axes = located.site.name, located.channel_axes
                drawn = self.form.site(variant, dims, axes) if self.form else None
                if isinstance(drawn, CountedNoise):
                    self.counted[node] = drawn
                elif drawn is not None:
                    self.refused[name] = drawn
                noise = self._noise(name, self.counted.get(node, variant), dims, has_rows, axes)
                self.variants[node] = (variant, noise)
        for site in weights:
            self._declare_weight(site, plan[site.site.name])
        for cell in captured.cells:
            if isinstance(acting := plan.get(cell.site.name), CellVariant):
                cell.check_rows()
                self.cells[cell.node] = (cell, acting, self._noise(cell.site.name, acting, cell.dims, True))

    def _declare_weight(self, site: WeightSite, variant: Variant) -> None:
        if isinstance(variant, ActivationVariant):
            words: Dims = tuple(sympy.Integer(size) for size in site.site.shape)
            noise = self._noise(site.site.name, variant, words, False)
            self.lookups |= {use.node: (LookUp(variant), noise) for use in site.uses}
            return
        check_use(site, variant)
        if isinstance(variant, SampledProduct) and not site.rows_and_features:
            self.notes.append(f"{site.site.name}: exact masks stand in, its input has axes besides rows and features")
            variant = stand_in(variant) or variant
        drawn = self.form.weight(site, variant) if self.form else None
        if isinstance(drawn, str):
            self.refused[site.site.name] = drawn
        elif drawn is not None:
            noise = self._noise(site.site.name, drawn, tuple(map(sympy.Integer, site.site.shape)), True)
            for use in site.uses:
                self.noisy_products[use.node] = (drawn.product(use, site), site, noise)
            return
        columns_in = prod(value_of(site.parameter).shape[1:])
        columns = site.site.shape[1] if not isinstance(variant, MaskedWeight) or variant.masks_bias else columns_in
        dims: Dims = (sympy.Integer(site.site.shape[0]), sympy.Integer(columns))
        noise = self._noise(site.site.name, variant, dims, isinstance(variant, SampledProduct))
        if isinstance(variant, SampledProduct):
            self.products[site.uses[0].node] = (variant, noise)
            return
        assert isinstance(variant, MaskedWeight)
        whole = MaskColumns(variant, slice(0, columns_in))
        own = {name: MaskColumns(variant, column) for name, column in site.columns.items() if variant.masks_bias}
        if variant.learned and site.log_variance is not None:
            self.learned[whole] = site.log_variance
        for source, user in readers(site.parameter):
            self.masks[source, user] = (whole, noise)
            if variant.before_pruning:
                self.unpruned[source] = site.parameter
        for use in site.uses:
            if use.bias is not None and (mask := own.get(use.bias.meta.get(STATE_NAME, ""))):
                self.masks[use.bias, use.node] = (mask, noise)

    def _noise(self, site: str, variant: Variant, dims: Dims, has_rows: bool, channel_axes: int = 1) -> fx.Node:
        node = self.graph.placeholder(f"noise_{len(self.noises)}")
        self.noises.append(NoiseInput(str(node.target), site, variant, dims, has_rows, channel_axes))
        return node

    def write(self, node: fx.Node) -> None:
        """Copy a node, or write what the plan makes of it."""
        if node.target in SITES:
            self.copies[node] = self._activation(node)
        elif node in self.products:
            self.copies[node] = self._product(node)
        elif node in self.noisy_products:
            self.copies[node] = self._noisy_product(node)
        elif node in self.cells:
            cell, variant, noise = self.cells[node]
            operands = fx.map_arg(node.args, lambda old: self._operand(old, node))
            self.copies[node] = write_cell(self.graph, cell, variant, (self.rows, noise), operands)
        elif node in self.lookups:
            look_up, noise = self.lookups[node]
            table, indices = (self._operand(node_operand(node, index), node) for index in range(2))
            self.copies[node] = self.graph.call_function(look_up, (table, indices, noise))
        elif self.narrower is not None and node.target in NARROWED:
            self.copies[node] = self.narrower.product(node, lambda old: self._operand(old, node))
        elif node.op == "output":
            self.graph.output(fx.map_arg(node.args[0], lambda old: self.copies[old]))
        else:
            self.copies[node] = self.graph.node_copy(node, lambda old: self._operand(old, node))

    def _activation(self, node: fx.Node) -> fx.Node:
        if node not in self.variants:
            is_identity = node.target is activation_site
            return self.copies[node_operand(node)] if is_identity else self.graph.node_copy(node, self.copies.get)
        variant, noise = self.variants[node]
        assert isinstance(variant, (ActivationVariant, PairedVariant, PoolVariant))
        tensors = [self.copies[each] for each in node.args if isinstance(each, fx.Node)]
        batch = node.meta[LAYOUT].batch
        if node in self.counted:
            assert isinstance(variant, ActivationVariant)
            return self.graph.call_function(
                CountedApply(variant, batch, self.counted[node]), (self.rows, noise, *tensors)
            )
        acting = Pooling(variant, node) if isinstance(variant, PoolVariant) else variant
        return self.graph.call_function(Apply(acting, batch), (self.rows, noise, *tensors))

    def _product(self, node: fx.Node) -> fx.Node:
        variant, noise = self.products[node]
        x, bias = self.copies[node_operand(node)], operand(node, 2)
        bias = None if bias is None else self.copies[bias]
        learned = node_operand(node, 1).args if variant.learned else (node_operand(node, 1),)
        weight, *rest = (self.copies[each] for each in learned if isinstance(each, fx.Node))
        spread = self.graph.call_function(variant.spread, (weight, bias, *rest))  # of parameters alone: made once
        scale, shift = (self.graph.call_function(getitem, (spread, index)) for index in range(2))
        square = self.graph.call_function(torch.square, (x,))
        linear = torch.ops.aten.linear.default
        parts = [self.graph.call_function(linear, each) for each in ((x, weight, bias), (square, scale, shift))]
        for part in (square, *parts):
            part.meta[LAYOUT] = Layout(BatchAxis(0))
        return self.graph.call_function(Apply(variant, BatchAxis(0)), (self.rows, noise, *parts))

    def _noisy_product(self, node: fx.Node) -> fx.Node:
        acting, site, noise = self.noisy_products[node]
        parameters = tuple(self.copies[each] for each in (site.parameter, *biases_of(site)))
        scale = {"scale": 1 / acting.variant.q} if acting.scaled else {}
        x, joined = self.copies[node_operand(node)], self.graph.call_function(join_columns, parameters, scale)
        narrower = self.narrower if acting.narrows else None
        if narrower is not None:
            x, joined = narrower.operand(x), narrower.operand(joined)
        product = self.graph.call_function(acting, (self.rows, noise, x, joined))
        product.meta = dict(node.meta)
        return product if narrower is None else narrower.widened(product)

    def _operand(self, old: fx.Node, user: fx.Node) -> fx.Node:
        if (old, user) not in self.masks:
            return self.copies[old]
        mask, noise = self.masks[old, user]
        if (old, mask) not in self.masked:
            learned = [self.copies[self.learned[mask]]] if mask in self.learned else []
            whole = self.copies[self.unpruned.get(old, old)]
            self.masked[old, mask] = self.graph.call_function(mask, (whole, noise, *learned))
        return self.masked[old, mask]
