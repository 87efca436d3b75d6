"""The whole graph, uncut, pass by pass: what every way of running passes is compared with; it knows no other way."""

from collections.abc import Sequence

import torch
from torch import Tensor

from service.graph.rewrite import Rewritten


def run_uncut(
    rewritten: Rewritten, inputs: tuple[Tensor, ...], noises: Sequence[Tensor], passes: int, per_row: bool
) -> list[Tensor]:
    """Return every output [S, B, …] of S passes one after the other, and in row scope of one row after the other.

    Args:
        rewritten: The graph.
        inputs: [B, …] each.
        noises: The noise of each site [S, R, …].
        passes: S.
        per_row: Whether each row has noise of its own, so that R is B.
    """
    module, rows, found = rewritten.module, len(inputs[0]), []
    with torch.inference_mode():
        for index in range(passes):
            own = [noise[index] for noise in noises]
            if per_row:
                singles = [
                    module(*(x[row : row + 1] for x in inputs), 1, *(noise[row : row + 1] for noise in own))
                    for row in range(rows)
                ]
                found.append(tuple(torch.cat(each) for each in zip(*singles, strict=True)))
            else:
                found.append(module(*inputs, rows, *own))
    return [torch.stack(each) for each in zip(*found, strict=True)]
