"""Rows of one ask, and several asks' rows behind one another; it does not know networks or plans."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from service.ask import Ask


def _always() -> bool:
    return True


@dataclass(eq=False)
class Part:
    """Rows of one ask.

    Attributes:
        tensors: The inputs [B, …].
        ask: How many passes, and their noise.
        wanted: The quantities of each output.
        first_row: Index of the first row in its ask.
        is_wanted: Whether anybody still waits for it.
    """

    tensors: tuple[Tensor, ...]
    ask: Ask
    wanted: tuple[tuple[str, ...], ...]
    first_row: int = 0
    is_wanted: Callable[[], bool] = _always

    @property
    def rows(self) -> int:
        """How many rows."""
        return self.tensors[0].shape[0]

    @property
    def rule(self) -> tuple[Any, ...]:
        """What rows have in common whose statistics are taken together."""
        return self.ask.passes, self.ask.tolerance, self.wanted

    def block(self, at: int, rows: int) -> "Part":
        """Return some neighbouring rows."""
        return replace(self, tensors=tuple(x[at : at + rows] for x in self.tensors), first_row=self.first_row + at)


@dataclass(frozen=True)
class Step:
    """How much may run before others get their turn.

    Attributes:
        row_passes: Rows × passes of the first step, and rows of any.
        seconds: How long a step should take, one pass at least.
    """

    row_passes: int
    seconds: float

    def passes(self, rows: int, before: tuple[int, float] | None) -> int:
        """Return the most passes of some rows in the next step, a power of two so that noise is found again.

        Args:
            rows: How many.
            before: How many passes a step before ran, and its seconds.
        """
        fit = self.row_passes / rows if before is None else before[0] * min(4.0, self.seconds / before[1])
        return 1 << max(0, int(fit).bit_length() - 1)


def rows_of(parts: Sequence[Part]) -> tuple[Tensor, ...]:
    """Return the rows of several parts behind one another."""
    if len(parts) == 1:
        return parts[0].tensors
    return tuple(torch.cat(each) for each in zip(*(part.tensors for part in parts), strict=True))


def noise_rows(parts: Sequence[Part]) -> Sequence[int] | None:
    """Return the indices that the rows' noise depends on; None where it depends on none."""
    several = [part.ask.rows(part.first_row, part.rows) for part in parts]
    if len(several) == 1 or several[0] is None:
        return several[0]
    return [row for each in several for row in each or ()]
