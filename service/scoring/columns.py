"""Quantities of any shape as named columns of text; it does not know files."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Answers = Mapping[str, Mapping[str, NDArray[Any]]]
Labels = Mapping[str, Sequence[str]]
_LABEL = "label"


def column_names(answers: Answers, labels: Labels) -> list[str]:
    """Return the columns' names, quantity by quantity.

    Args:
        answers: Quantities [B, …] by output and name.
        labels: Each output's labels, which name the elements where there are as many.
    """
    return [
        f"{_prefix(answers, output)}{name}{ending}"
        for output, quantities in answers.items()
        for name, values in quantities.items()
        for ending in _endings(values.shape[1:], labels.get(output, ()))
    ]


def cells(answers: Answers, labels: Labels) -> Iterator[list[str]]:
    """Yield each row's cells in the order of `column_names`: floats as the shortest text of their float32."""
    parts = [
        _text(values, labels.get(output, ()) if name == _LABEL else ())
        for output, quantities in answers.items()
        for name, values in quantities.items()
    ]
    for row in zip(*parts, strict=True):
        yield [cell for part in row for cell in part]


def _prefix(answers: Answers, output: str) -> str:
    return f"{output}." if len(answers) > 1 else ""


def _endings(shape: tuple[int, ...], labels: Sequence[str]) -> list[str]:
    if prod(shape) == 1:
        return [""]
    if len(shape) == 1 and len(labels) == shape[0]:
        return [f"_{label}" for label in labels]
    return ["".join(f"_{index}" for index in place) for place in product(*map(range, shape))]


def _text(values: NDArray[Any], labels: Sequence[str]) -> list[list[str]]:
    flat = values.reshape(len(values), -1)
    if labels and flat.dtype.kind in "iu":
        flat = np.asarray(labels)[flat]
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float32)
    return [list(row) for row in flat.astype(str).tolist()]
