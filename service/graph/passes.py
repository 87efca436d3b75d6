"""Run a split graph for several passes at once: folded into the batch, else vmapped, else one by one.

It does not know variants or where noise comes from. Noise is [S, R, …] for each site, R being 1 (one network for all
rows) or B. Every mode gives [S, B, …] for each output. A graph's `forward` is called, for its module would first look
for hooks and for faults to show, which takes as long as a small graph.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from service.graph.rewrite import NoiseInput
from service.graph.shapes import BatchAxis
from service.graph.split import Boundary, Split

Values = Sequence[Any]
Noises = Sequence[Tensor]
Runner = Callable[[Split, Values, Noises, int], list[Tensor]]


class Mode(StrEnum):
    """How passes run together."""

    FOLDED = "folded"
    VMAPPED = "vmapped"
    LOOPED = "looped"
    ROWS_VMAPPED = "rows vmapped"
    ROWS_LOOPED = "rows looped"


VECTORISED = frozenset({Mode.VMAPPED, Mode.ROWS_VMAPPED})


def folded(split: Split, values: Values, noises: Noises, rows: int) -> list[Tensor]:
    """Run all passes as one batch of S · B rows."""
    passes = noises[0].shape[0]
    repeated = [_repeat(value, boundary, passes) for value, boundary in zip(values, split.boundaries, strict=True)]
    outputs = split.suffix.forward(*repeated, passes * rows, *noises)
    return [output.unflatten(0, (passes, rows)) for output in outputs]


def vmapped(split: Split, values: Values, noises: Noises, rows: int) -> list[Tensor]:
    """Run all passes by vectorising over the noise."""

    def one(*noise: Tensor) -> tuple[Tensor, ...]:
        outputs: tuple[Tensor, ...] = split.suffix.forward(*values, rows, *noise)
        return outputs

    return list(torch.vmap(one)(*noises))


def looped(split: Split, values: Values, noises: Noises, rows: int) -> list[Tensor]:
    """Run the passes one by one."""
    each = ([noise[index] for noise in noises] for index in range(len(noises[0])))
    results = [split.suffix.forward(*values, rows, *own) for own in each]
    return [torch.stack(several) for several in zip(*results, strict=True)]


def rows_vmapped(split: Split, values: Values, noises: Noises, rows: int) -> list[Tensor]:
    """Give every row a network of its own by vectorising over passes and rows."""
    axes = [0 if boundary.layout.batch and boundary.layout.is_tensor else None for boundary in split.boundaries]
    fronted = [_rows_apart(value, boundary, rows) for value, boundary in zip(values, split.boundaries, strict=True)]
    spread = [noise.expand(-1, rows, *noise.shape[2:]) for noise in noises]

    def one(*arguments: Any) -> tuple[Tensor, ...]:
        own, noise = arguments[: len(axes)], arguments[len(axes) :]
        outputs: tuple[Tensor, ...] = split.suffix.forward(*own, 1, *(each[None] for each in noise))
        return outputs

    over_rows = torch.vmap(one, in_dims=(*axes, *[0] * len(noises)))
    over_passes = torch.vmap(over_rows, in_dims=(*[None] * len(axes), *[0] * len(noises)))
    return [output.squeeze(2) for output in over_passes(*fronted, *spread)]


def rows_looped(split: Split, values: Values, noises: Noises, rows: int) -> list[Tensor]:
    """Give every row a network of its own, row by row and pass by pass."""
    columns = []
    for row in range(rows):
        own = [_one_row(value, boundary, row, rows) for value, boundary in zip(values, split.boundaries, strict=True)]
        columns.append(looped(split, own, [noise[:, row % noise.shape[1]][:, None] for noise in noises], 1))
    return [torch.cat(each, dim=1) for each in zip(*columns, strict=True)]


RUNNERS: dict[Mode, Runner] = {
    Mode.FOLDED: folded,
    Mode.VMAPPED: vmapped,
    Mode.LOOPED: looped,
    Mode.ROWS_VMAPPED: rows_vmapped,
    Mode.ROWS_LOOPED: rows_looped,
}


def can_fold(split: Split) -> bool:
    """Tell whether every value that crosses can be repeated for each pass."""
    return not any(boundary.layout.entangled for boundary in split.boundaries)


def unfolding(noises: Sequence[NoiseInput], split: Split) -> str | None:
    """Return why passes do not fold into the rows; None where they do."""
    if outside := [noise.site for noise in noises if not noise.has_rows]:
        return f"passes do not fold into the rows, which the noise of {', '.join(outside)} does not meet"
    return None if can_fold(split) else "passes do not fold into the rows, which cannot be told apart at the first site"


def of_rows(split: Split, values: Values, rows: Tensor) -> tuple[Any, ...] | None:
    """Return what the trunk would give for some of its rows, named by place; None where only the trunk can tell."""
    layouts = [boundary.layout for boundary in split.boundaries]
    crossing, fixed = values[: len(layouts)], values[len(layouts) :]
    for layout, value in zip(layouts, crossing, strict=True):
        folds_rows = layout.batch is not None and layout.batch.factor != 1
        if layout.entangled or folds_rows or not (layout.is_tensor and isinstance(value, Tensor)):
            return None
    kept = (
        value if layout.batch is None else value.index_select(layout.batch.axis, rows)
        for layout, value in zip(layouts, crossing, strict=True)
    )
    return (*kept, *(value.index_select(0, rows) for value in fixed))


def _repeat(value: Any, boundary: Boundary, passes: int) -> Any:
    batch = boundary.layout.batch
    if batch is None or boundary.shared:
        return value
    if not isinstance(value, Tensor):
        return value * passes
    if batch.factor == 1 or batch.row_major:
        axis = batch.axis
        return value.unsqueeze(axis).expand(*value.shape[:axis], passes, *value.shape[axis:]).flatten(axis, axis + 1)
    apart = torch.unflatten(value, batch.axis, (int(batch.factor), -1)).unsqueeze(batch.axis + 1)
    spread = apart.expand(*apart.shape[: batch.axis + 1], passes, *apart.shape[batch.axis + 2 :])
    return spread.flatten(batch.axis, batch.axis + 2)


def _rows_apart(value: Any, boundary: Boundary, rows: int) -> Any:
    """Return the value with its rows in front and a batch of one where they were: [B, …, 1 · k, …]."""
    batch = boundary.layout.batch
    if batch is None:
        return value
    return _split_rows(value, batch, rows) if isinstance(value, Tensor) else value // rows


def _split_rows(value: Tensor, batch: BatchAxis, rows: int) -> Tensor:
    axis = batch.axis
    if batch.factor == 1:
        return value.movedim(axis, 0).unsqueeze(axis + 1)
    if batch.row_major:
        return torch.unflatten(value, axis, (rows, -1)).movedim(axis, 0)
    return torch.unflatten(value, axis, (-1, rows)).movedim(axis + 1, 0)


def _one_row(value: Any, boundary: Boundary, row: int, rows: int) -> Any:
    batch = boundary.layout.batch
    if batch is None:
        return value
    return _split_rows(value, batch, rows)[row] if isinstance(value, Tensor) else value // rows
