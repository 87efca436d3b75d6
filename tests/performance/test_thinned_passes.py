"""What dropping half of wide layers saves, in the same run: `pytest tests/performance -s` prints the figures."""

import time
from collections.abc import Callable

import torch
from torch import nn

from service import Predictor
from service.graph.compiled import Compiled
from service.graph.drawing import Draw
from service.graph.passes import RUNNERS, Mode
from service.plan import make_plan

ROWS, WIDTH, PASSES = 1024, 1024, 4


def test_many_rows_of_wide_layers_take_less_than_half_of_masked_passes() -> None:
    """A quarter of the operations; the bound leaves room for gathering and for a busy machine."""
    layers: list[nn.Module] = []
    for inside in (64, WIDTH, WIDTH):
        layers += [nn.Linear(inside, WIDTH), nn.ReLU(), nn.Dropout(0.5)]
    predictor, x = (
        Predictor.capture(nn.Sequential(*layers, nn.Linear(WIDTH, 10)), torch.randn(2, 64)),
        torch.randn(ROWS, 64),
    )
    compiled = Compiled(predictor._captured, make_plan(predictor.sites))
    noises = compiled._draw([(ROWS, 64)], Draw(0, 0, PASSES, None))
    values, thinned = compiled.trunk((x,)), compiled.thinned
    assert thinned is not None

    def least_s(work: Callable[[], object]) -> float:
        began = time.perf_counter()
        work()
        return time.perf_counter() - began

    with torch.inference_mode():
        times = [
            (
                least_s(lambda: thinned.run(values, noises, ROWS)),
                least_s(lambda: RUNNERS[Mode.FOLDED](compiled._split, values, noises, ROWS)),
            )
            for _ in range(8)
        ]
    thin_s, masked_s = min(a for a, _ in times[1:]), min(b for _, b in times[1:])
    print(f"\n{PASSES} passes of {ROWS} rows: thinned {thin_s * 1e3:.0f} ms, masked {masked_s * 1e3:.0f} ms")
    assert thin_s < masked_s / 2
