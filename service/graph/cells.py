"""Find the recurrent layers whose steps are sites, and write an active one as its inputs' products, then its steps.

It does not know cells' equations or variants' mathematics.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from service.dropout.cell import GRU_GATES, LSTM_GATES, CellLayer, affines
from service.dropout.cell_layers import CELL_VARIANTS, run_in_eval
from service.dropout.variant import CellVariant, Kind, Place
from service.errors import CaptureFailed, InvalidPlan
from service.graph.layout import LAYOUT, Layout
from service.graph.nodes import module_of, node_operand, operand, sequence_operand, value_of
from service.graph.program import STATE_NAME
from service.graph.shapes import BATCH, BatchAxis, Dims
from service.graph.sites import Canon, Site

aten = torch.ops.aten
thinnet = torch.ops.thinnet
_TORCHS = (aten.lstm.input, aten.gru.input)
_OURS: dict[Any, int] = {thinnet.lstm_layer.default: 2, thinnet.gru_layer.default: 1}  # operator → how many states
TRAINED_CELLS = tuple(_OURS)


def quieten(canon: Canon, node: fx.Node) -> None:
    """Write the eval form of a training layer in its place."""
    count = _OURS[node.target]
    states = [node_operand(node, index) for index in range(1, 1 + count)]
    rest = [operand(node, index) for index in range(1 + count, 7 + count)]
    with canon.graph.inserting_before(node):
        quiet = canon.graph.call_function(run_in_eval, (node_operand(node), states, *rest))
    quiet.meta = dict(node.meta)
    canon.replace(node, quiet)


@dataclass(frozen=True)
class CellParts:
    """What a layer of a graph is made of: nodes, or the values that stand for them in another graph."""

    x: Any
    states: Sequence[Any]
    parameters: Sequence[Any]
    lengths: Any
    bidirectional: bool
    batch_first: bool

    @staticmethod
    def of(target: Any, arguments: Sequence[Any]) -> "CellParts":
        """Return the parts by the operator's arguments."""
        if target is run_in_eval:
            return CellParts(*arguments[:6])
        states = arguments[1] if target is aten.lstm.input else [arguments[1]]
        return CellParts(arguments[0], states, arguments[2], None, bool(arguments[7]), bool(arguments[8]))

    @property
    def directions(self) -> int:
        """1 or 2."""
        return 2 if self.bidirectional else 1


@dataclass(frozen=True)
class CellSite:
    """A recurrent layer, its variant in training, and its shape.

    Attributes:
        site: The site, named after its module and the layer.
        node: The layer.
        dims: Its (steps, directions, gates, inputs, units).
    """

    site: Site
    node: fx.Node
    dims: Dims

    @property
    def parts(self) -> CellParts:
        """What it is made of."""
        return CellParts.of(self.node.target, self.node.args)

    def check_rows(self) -> None:
        """Check that rows are where the layer takes them.

        Raises:
            InvalidPlan: They are not.
        """
        parts = self.parts
        wanted = {parts.x: BatchAxis(0 if parts.batch_first else 1)} | {state: BatchAxis(1) for state in parts.states}
        if parts.lengths is not None:
            wanted[parts.lengths] = BatchAxis(0)
        if any(node.meta[LAYOUT] != Layout(batch) for node, batch in wanted.items()):
            raise InvalidPlan(f"site {self.site.name!r}: rows cannot be told apart there; switch it off")


def find_cells(canon: Canon) -> tuple[CellSite, ...]:
    """Return the LSTM and GRU layers of a pure graph, in order; no site where rows are not sequences, or projected.

    Raises:
        CaptureFailed: A layer trained with dropout in its steps cannot be a site.
    """
    names: Counter[str] = Counter()
    found = []
    for node in canon.graph.nodes:
        if node.target not in (*_TORCHS, run_in_eval):
            continue
        parts = CellParts.of(node.target, node.args)
        dims = _dims(canon, parts)
        if dims is None and node.target is run_in_eval:
            raise CaptureFailed(
                f"module {module_of(node)[0] or 'the root'!r}: it takes several sequences for each row, or rows for "
                "steps; give it one sequence for each row, and batch_first as its input is"
            )
        if dims is None:
            continue
        base = f"{module_of(node)[0]}.cell_{_layer_index(parts)}".lstrip(".")
        names[base] += 1
        name = base if names[base] == 1 else f"{base}#{names[base]}"
        variant, p, others = _trained(node)
        found.append(CellSite(Site(name, Kind.CELL, canon.plain(dims), variant, p, others), node, dims))
    return tuple(found)


def _dims(canon: Canon, parts: CellParts) -> Dims | None:
    """Return (steps, directions, gates, inputs, units); None where it is no cell whose rows and weights are plain."""
    each = len(parts.parameters) // parts.directions
    if each not in (2, 4) or any("val" not in node.meta for node in (parts.x, *parts.parameters)):
        return None
    outer, inputs = value_of(parts.parameters[0]).shape
    units = value_of(parts.parameters[1]).shape[1]
    rows, steps = canon.dims(parts.x)[:2] if parts.batch_first else reversed(canon.dims(parts.x)[:2])
    if rows != BATCH or BATCH in steps.free_symbols or outer not in (GRU_GATES * units, LSTM_GATES * units):
        return None
    return (steps, *(sympy.Integer(int(size)) for size in (parts.directions, outer // units, inputs, units)))


def _layer_index(parts: CellParts) -> int:
    """Return which layer of its module it is, by the name of its weight."""
    found = re.search(r"_l(\d+)$", str(parts.parameters[0].meta.get(STATE_NAME, "")))
    return int(found[1]) if found else 0


def _trained(node: fx.Node) -> tuple[str | None, float | None, tuple[tuple[str, float], ...]]:
    if node.target is not run_in_eval:
        return None, None, ()
    variant = CELL_VARIANTS[str(operand(node, 6))](*sequence_operand(node, 7))
    own = variant.parameters()
    p = own.pop("p") if variant.p > 0 or not variant.active else None  # a rate of 0 would say that it is off
    return variant.name, p, tuple(own.items())


def write_cell(
    graph: fx.Graph, cell: CellSite, variant: CellVariant, drawn: tuple[fx.Node, fx.Node], operands: Sequence[Any]
) -> fx.Node:
    """Write an active layer: the products of its inputs, which noise need not reach, then its steps.

    Args:
        graph: Where to write it.
        cell: The layer.
        variant: What acts in it.
        drawn: The nodes of the number of rows and of the noise.
        operands: The layer's arguments there.
    """
    parts = CellParts.of(cell.node.target, operands)
    directions, gates, inputs, units = (int(dim) for dim in cell.dims[1:])
    layer = CellLayer(variant, gates, inputs, units, directions)
    projecting, recurrent = affines(parts.parameters, directions)
    rows, noise = drawn
    masked = noise if Place.INPUT in variant.places else None
    shares = []
    for direction, weight in enumerate(projecting):
        project = ProjectInputs(layer, direction, parts.batch_first)
        shares.append(graph.call_function(project, (rows, masked, parts.x, *weight)))
        shares[-1].meta[LAYOUT] = Layout(BatchAxis(0))
    arguments = (rows, noise, shares, list(parts.states), recurrent, parts.lengths)
    return graph.call_function(RunSteps(layer, parts.batch_first), arguments)


class ProjectInputs:
    """Multiply a layer's inputs by a direction's weights, for one pass or for several folded into the rows."""

    def __init__(self, layer: CellLayer, direction: int, batch_first: bool) -> None:
        self.layer, self.direction = layer, direction
        self.batch = BatchAxis(0 if batch_first else 1)
        self.__name__ = "project_inputs"

    def __call__(self, rows: int, noise: Tensor | None, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the gates' shares [rows, steps, gates · units]; noise is [R, …], or [S, R, …] folded."""
        x, passes = x.movedim(self.batch.axis, 0), _folded(noise)
        gates = self.layer.project(noise, _apart(x, rows, passes), (weight, bias), self.direction)
        return gates if passes is None else gates.flatten(0, 1)


class RunSteps:
    """Run a layer's steps, for one pass or for several folded into the rows."""

    copies = 2  # the outputs are held step by step too, beside what a step computes

    def __init__(self, layer: CellLayer, batch_first: bool) -> None:
        self.layer = layer
        self.batch = BatchAxis(0)
        self.batch_first = batch_first
        self.__name__ = f"run_{layer.variant.name.replace('-', '_')}"

    def __call__(
        self, rows: int, noise: Tensor, gates: Sequence[Tensor], states: Sequence[Tensor], weights: Sequence[Any],
        lengths: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Return outputs and final states in torch's own layout; noise is [R, …], or [S, R, …] folded."""
        passes = _folded(noise)
        gates = [_apart(each, rows, passes) for each in gates]
        first = tuple(_apart(state.transpose(0, 1), rows, passes) for state in states)
        lengths = None if lengths is None else _apart(lengths, rows, passes)
        y, *finals = self.layer.run(noise, gates, first, weights, lengths)
        if passes is not None:
            y, *finals = (each.flatten(0, 1) for each in (y, *finals))
        return (y if self.batch_first else y.transpose(0, 1)), *(each.transpose(0, 1) for each in finals)


def _folded(noise: Tensor | None) -> int | None:
    """Return how many passes are folded into the rows; None where there is one, or none that noise tells."""
    return noise.shape[0] if noise is not None and noise.dim() == 5 else None


def _apart(x: Tensor, rows: int, passes: int | None) -> Tensor:
    """Return x with passes before rows, where they are folded; one pass's rows are shared by all."""
    if passes is None:
        return x
    return torch.unflatten(x, 0, (passes, -1)) if len(x) == rows else x.unsqueeze(0)
