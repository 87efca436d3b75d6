"""Symbolic shapes with one batch symbol: which axis holds the rows, and how long the others are for given inputs.

It does not know operations; it reads the shapes that the export recorded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch import Tensor

from service.errors import CaptureFailed
from service.graph.nodes import returned, value_of
from service.graph.program import Program

BATCH = sympy.Symbol("batch", integer=True, positive=True)
ONE = sympy.Integer(1)
Expression = Any  # a sympy.Expr, for which sympy ships no types
Dims = tuple[Expression, ...]


@dataclass(frozen=True)
class BatchAxis:
    """Where the rows are in a tensor.

    Attributes:
        axis: The axis, counted from 0.
        factor: How many entries of it belong to each row; 1 for a plain batch axis.
        row_major: With a factor, whether a row's entries are neighbours (b · k + j) rather than strided (j · B + b).
    """

    axis: int
    factor: Expression = ONE
    row_major: bool = True


@dataclass(frozen=True)
class Symbols:
    """The symbols of a program's shapes: one for the batch, the others free to grow."""

    batch: frozenset[Expression]
    growing: tuple[tuple[Expression, int, int], ...]  # (symbol, input index, axis)

    @staticmethod
    def of(program: Program) -> "Symbols":
        """Read the symbols off the inputs.

        Raises:
            CaptureFailed: An input has no batch axis, or a fixed one.
        """
        batch: set[Expression] = set()
        growing: dict[Expression, tuple[int, int]] = {}
        for index, node in enumerate(program.placeholders()):
            shape = value_of(node).shape
            if not shape or not isinstance(shape[0], torch.SymInt):
                raise CaptureFailed(_static_batch(str(node.target), tuple(shape)))
            batch |= expression(shape[0]).free_symbols
            for axis, size in enumerate(shape[1:], start=1):
                if isinstance(size, torch.SymInt):
                    growing.setdefault(expression(size), (index, axis))
        single = {symbol: place for symbol, place in growing.items() if symbol.is_Symbol and symbol not in batch}
        return Symbols(frozenset(batch), tuple((symbol, *place) for symbol, place in single.items()))

    def check_outputs(self, program: Program) -> None:
        """Check that every output has its rows in front.

        Raises:
            CaptureFailed: One has not.
        """
        for name, node in zip(program.outputs, returned(program.graph.graph), strict=True):
            dims = self.dims(value_of(node))
            if not dims or dims[0] != BATCH or any(BATCH in dim.free_symbols for dim in dims[1:]):
                raise CaptureFailed(
                    f"output {name!r} has the shape {list(dims)}; each output needs one entry for each row, on its "
                    "first axis"
                )

    def dims(self, value: Any) -> Dims:
        """Return a tensor's (or a size list's) shape with the batch written as one symbol."""
        sizes: Sequence[Any] = value.shape if isinstance(value, Tensor) else value
        return tuple(self.expression(size) for size in sizes)

    def expression(self, size: Any) -> Expression:
        """Return one size with the batch written as one symbol."""
        return expression(size).xreplace(dict.fromkeys(self.batch, BATCH))

    def is_growing(self, dim: Expression) -> bool:
        """Tell whether a length changes between requests for reasons other than the batch."""
        return bool(dim.free_symbols - {BATCH})

    def lengths(self, dims: Dims, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """Evaluate dims for inputs of these shapes."""
        values = tuple((symbol, shapes[index][axis]) for symbol, index, axis in self.growing)
        return _evaluate(dims, ((BATCH, shapes[0][0]), *values))


@lru_cache(maxsize=4096)
def _evaluate(dims: Dims, values: tuple[tuple[Expression, int], ...]) -> tuple[int, ...]:
    table = {symbol: sympy.Integer(value) for symbol, value in values}
    return tuple(int(dim.xreplace(table)) for dim in dims)


def expression(size: Any) -> Expression:
    """Return a size as a symbolic expression."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(int(size))


def find_batch(dims: Dims) -> BatchAxis | None:
    """Find the one axis that the batch is part of; None where there is none.

    Raises:
        ValueError: Rows are spread over several axes, or over one in a way that is not a multiple.
    """
    found = [(axis, dim) for axis, dim in enumerate(dims) if BATCH in dim.free_symbols]
    if not found:
        return None
    axis, dim = found[0]
    factor = sympy.cancel(dim / BATCH)
    if len(found) > 1 or BATCH in factor.free_symbols or not factor.is_polynomial():
        raise ValueError(f"the batch is in the shape {dims} in a way that rows cannot be told apart")
    return BatchAxis(axis, factor)


def row_dims(dims: Dims, batch: BatchAxis | None) -> Dims:
    """Return the shape of one row: the batch axis gone, its factor (if any) in front."""
    if batch is None:
        return dims
    rest = dims[: batch.axis] + dims[batch.axis + 1 :]
    return rest if batch.factor == 1 else (batch.factor, *rest)


def _static_batch(name: str, shape: tuple[Any, ...]) -> str:
    return (
        f"input {name!r} has the fixed shape {shape}, so it would serve that many rows only; export it again with "
        'torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},)) and an example of '
        "two or more rows"
    )
