"""How much arithmetic a network is, counted and not timed, so that the answer is always the same; it knows no plans."""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.utils.flop_counter import FlopCounterMode


def operations_per_row(graph: fx.GraphModule, example: Sequence[Tensor]) -> float:
    """Return the multiplications and additions of matrix products and convolutions in a pass, for each row."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        graph(*example)
    return float(counter.get_total_flops() / len(example[0]))
