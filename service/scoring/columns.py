"""Quantities of any shape as named columns of a table; it does not know files."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.scoring.block import Block
from service.scoring.engine import Answers

if TYPE_CHECKING:
    import pyarrow as pa

Labels = Mapping[str, Sequence[str]]
_LABEL = "label"


def answered_rows(block: Block, answers: Answers, labels: Labels) -> "pa.RecordBatch":
    """Return a block's key and answers, without the rows that are at fault.

    The columns are named quantity by quantity: `mean`, or one column for each element, by label or number;
    `<output>.` stands before it where there are several outputs. Floats are float32.

    Args:
        block: What was asked.
        answers: Quantities [B, …] by output and name.
        labels: Each output's labels, which name the elements where there are as many.
    """
    import pyarrow as pa

    names, columns = [block.key], [block.keys]
    for name, values in named_columns(answers, labels):
        names.append(name)
        columns.append(pa.array(values))
    batch = pa.RecordBatch.from_arrays(columns, names=names)
    if not block.faults:
        return batch
    kept = np.ones(len(block), dtype=bool)
    kept[[fault.row - block.first_row for fault in block.faults]] = False
    return batch.filter(pa.array(kept))


def named_columns(answers: Answers, labels: Labels) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield each column's name and cells [B]."""
    for output, quantities in answers.items():
        own = labels.get(output, ())
        for name, values in quantities.items():
            flat = _flat(values, own if name == _LABEL else ())
            for index, ending in enumerate(_endings(np.shape(values)[1:], own)):
                yield f"{_prefix(answers, output)}{name}{ending}", flat[:, index]


def _prefix(answers: Answers, output: str) -> str:
    return f"{output}." if len(answers) > 1 else ""


def _endings(shape: tuple[int, ...], labels: Sequence[str]) -> list[str]:
    if prod(shape) == 1:
        return [""]
    if len(shape) == 1 and len(labels) == shape[0]:
        return [f"_{label}" for label in labels]
    return ["".join(f"_{index}" for index in place) for place in product(*map(range, shape))]


def _flat(values: NDArray[Any], labels: Sequence[str]) -> NDArray[Any]:
    """Return values as [B, columns]; class numbers as their labels."""
    flat = values.reshape(len(values), -1)
    if labels and flat.dtype.kind in "iu":
        flat = np.asarray(labels, dtype=object)[flat]
    return flat.astype(np.float32, copy=False) if flat.dtype.kind == "f" else flat
