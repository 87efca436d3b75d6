"""Compare the ways in which passes run together with the uncut graph."""

import torch
from torch import Tensor

from service.graph.capture import Captured
from service.graph.compiled import Compiled
from service.graph.drawing import Draw, draw_noises
from service.graph.passes import RUNNERS, Mode, can_fold


def compare_modes(compiled: Compiled, captured: Captured, inputs: tuple[Tensor, ...]) -> None:
    """Run three passes in every way that a plan can, and compare each with the whole graph."""
    rewritten, split, rows = compiled._rewritten, compiled._split, len(inputs[0])
    shapes = [tuple(each.shape) for each in inputs]
    draw, device = Draw(3, 0, 3, None), inputs[0].device
    plain, noises = (
        draw_noises(each.noises, captured.symbols, shapes, draw, device) for each in (rewritten, compiled._fast)
    )
    with torch.inference_mode():
        whole = [rewritten.module(*inputs, rows, *(noise[t] for noise in plain)) for t in range(3)]
        values = compiled.trunk(inputs)[: len(split.boundaries)]
    expected = [
        torch.stack(each) for each, noisy in zip(zip(*whole, strict=True), compiled.stochastic, strict=True) if noisy
    ]
    chosen = compiled.mode(per_row=False)
    for mode in {chosen, Mode.LOOPED}:
        with torch.inference_mode():
            found = RUNNERS[mode](split, values, noises, rows)
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert chosen is not Mode.FOLDED or can_fold(split)
