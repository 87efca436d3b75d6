"""Whether more passes need more memory: not once they fill a chunk, unless all of them are asked for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from memory import peak_bytes
from torch import nn
from workloads import lenet, small_mlp

from service import Predictor
from service.ask import Asked
from service.graph.drawing import Store
from service.graph.rates import measured

FEW, MANY, CHUNK = 100, 10_000, 50


# the cache holds 50 passes, or a hundred would not be chunks as large as those of ten thousand, and a larger chunk
# would pass for growth
@pytest.mark.parametrize(
    ("make", "rows", "shape"), [(small_mlp, 512, (13,)), (lenet, 1, (1, 28, 28))], ids=["mlp", "lenet"]
)
def test_ten_thousand_passes_hold_no_more_than_a_hundred_that_fill_a_chunk(
    make: Callable[[], nn.Module],
    rows: int,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.graph.drawing._store", Store(0))  # kept for other requests, up to its own bound
    x = torch.randn(rows, *shape)
    predictor = Predictor.capture(make().eval(), x[:1])
    predictor.predict(x, passes=2)  # its checks at first use are not the request's
    run = predictor.prepared(Asked(passes=2)).run
    footprint, shapes = run.compiled.footprint((x,), per_row=False), [(rows, *shape)]
    rates = replace(measured(), cache_bytes=CHUNK * footprint.suffix.of(rows))
    monkeypatch.setattr("service.run.measured", lambda: rates)
    assert run.chunk(footprint, shapes, per_row=False) == CHUNK

    def peak(passes: int, **asked: list[str]) -> int:
        return peak_bytes(lambda: predictor.predict(x, passes=passes, **asked))

    few, many, kept = peak(FEW), peak(MANY), peak(MANY, quantities=["samples"])
    print(f"\n{make.__name__}: {few} bytes for {FEW} passes, {many} for {MANY}, {kept} with samples")
    assert many < 1.1 * few < kept
