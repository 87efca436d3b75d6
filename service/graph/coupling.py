"""Whether a network's rows change one another's answers, and inputs of rows that all differ; it knows no noise."""

import torch
from torch import Tensor

from service.graph.capture import Captured
from service.graph.layout import change_row, with_rows
from service.graph.proof import close

CHECK_ROWS = 3


def fresh_inputs(example: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return inputs of three rows that differ from the example's in every row."""
    inputs = tuple(with_rows(each, CHECK_ROWS) for each in example)
    for row in range(CHECK_ROWS):
        inputs = tuple(change_row(each, row) for each in inputs)
    return inputs


def couples_rows(captured: Captured) -> bool:
    """Tell whether a row's answer depends on the other rows of its batch."""
    inputs = fresh_inputs(captured.example)
    with torch.inference_mode():
        together = captured.program.graph(*inputs)
        alone = captured.program.graph(*(each[:1] for each in inputs))
    return not all(close(one, several[:1]) for one, several in zip(alone, together, strict=True))
