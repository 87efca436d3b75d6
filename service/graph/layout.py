"""Which axis of every value in a graph holds the rows, found by running it; it does not know sites or plans.

Symbols alone cannot tell: an axis of size 2 · B looks the same whether a row's two entries are neighbours or B apart.
So the graph runs on two batch sizes, to see which axes grow, and again with a single row changed (to other values, then
to NaN, which also gets through what is constant), to see which entries are that row's.
"""

from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from service.errors import SelfCheckFailed
from service.graph.shapes import BatchAxis

LAYOUT = "layout"  # node.meta key: the Layout
_ROWS = 3


@dataclass(frozen=True)
class Layout:
    """How a value depends on the batch.

    Attributes:
        batch: Where the rows are; None where the shape does not depend on the batch.
        entangled: Whether rows cannot be told apart in it.
        is_tensor: Whether it is a tensor rather than a number.
    """

    batch: BatchAxis | None = None
    entangled: bool = False
    is_tensor: bool = True


def note_layouts(module: fx.GraphModule, example: tuple[Tensor, ...]) -> None:
    """Note the layout of every node in its `meta`.

    Args:
        module: A pure graph.
        example: Inputs of two rows or more.

    Raises:
        SelfCheckFailed: The network does not run on two rows, or on three.
    """
    inputs = tuple(with_rows(each, _ROWS) for each in example)
    changed = tuple(change_row(each, _ROWS - 1) for each in inputs)
    spoiled = tuple(_spoil_row(each, _ROWS - 1) for each in changed)
    fewer = tuple(each[:2] for each in inputs)
    with torch.no_grad():
        few, more, *marked = (_values(module, each) for each in (fewer, inputs, changed, spoiled))
    for node in more:
        node.meta[LAYOUT] = _layout(few[node], more[node], [values[node] for values in marked])


def with_rows(x: Tensor, rows: int) -> Tensor:
    """Return x with exactly this many rows, repeating its own."""
    return x.repeat(-(-rows // len(x)), *[1] * (x.dim() - 1))[:rows]


def change_row(x: Tensor, row: int) -> Tensor:
    """Return x with one row changed: floats shifted, truth values and integers among 0 and 1 flipped."""
    y = x.clone()
    if x.dtype.is_floating_point:
        generator = torch.Generator().manual_seed(2)
        y[row] += torch.randn(x[row].shape, generator=generator).to(x)
    elif x.dtype == torch.bool:
        y[row] = x[row].roll(1)
    else:
        y[row] = torch.where(x[row] == 0, 1, x[row] - 1)
    return y


def _spoil_row(x: Tensor, row: int) -> Tensor:
    y = x.clone()
    if x.dtype.is_floating_point:
        y[row] = torch.nan
    return y


def _values(module: fx.GraphModule, inputs: tuple[Tensor, ...]) -> dict[fx.Node, Any]:
    interpreter = fx.Interpreter(module, garbage_collect_values=False)
    try:
        interpreter.run(*inputs)
    except Exception as error:
        raise SelfCheckFailed(f"the network does not run on {len(inputs[0])} rows: {error}") from error
    return {node: value for node, value in interpreter.env.items() if node.op != "output"}


def _layout(fewer: Any, more: Any, marked: list[Any]) -> Layout:
    if not isinstance(more, Tensor):
        return Layout(is_tensor=False, batch=BatchAxis(0) if isinstance(more, int) and fewer != more else None)
    grown = [axis for axis, (a, b) in enumerate(zip(fewer.shape, more.shape, strict=True)) if a != b]
    if not grown:
        return Layout()
    axis = grown[0]
    if len(grown) > 1 or more.shape[axis] * (_ROWS - 1) != fewer.shape[axis] * _ROWS:
        return Layout(entangled=True)
    factor = more.shape[axis] // _ROWS
    if factor == 1:
        return Layout(BatchAxis(axis))
    found = (_with_factor(axis, factor, more, each) for each in marked)
    return next((layout for layout in found if not layout.entangled), Layout(entangled=True))


def _with_factor(axis: int, factor: int, more: Tensor, moved: Tensor) -> Layout:
    others = [each for each in range(more.dim()) if each != axis]
    differs = ~torch.isclose(more.double(), moved.double(), rtol=0, atol=0, equal_nan=True)
    touched = set((differs.any(others) if others else differs).nonzero().flatten().tolist())
    neighbours = set(range((_ROWS - 1) * factor, _ROWS * factor))
    strided = set(range(_ROWS - 1, _ROWS * factor, _ROWS))
    if touched <= neighbours and not touched <= strided:
        return Layout(BatchAxis(axis, sympy.Integer(factor), row_major=True))
    if touched <= strided and not touched <= neighbours:
        return Layout(BatchAxis(axis, sympy.Integer(factor), row_major=False))
    return Layout(entangled=True)
