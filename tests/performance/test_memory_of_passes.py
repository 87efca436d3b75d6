"""Whether more passes need more memory: not once they fill a chunk, unless all of them are asked for."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from memory import peak_bytes
from torch import nn
from workloads import lenet, small_mlp

from service import Predictor
from service.graph.drawing import Store
from service.graph.rates import measured

FEW, MANY = 100, 10_000


# the cache holds some 40 passes, or a hundred would fill no chunk and a larger chunk would pass for growth; LeNet's
# peak is that of its convolutions, and its samples rise above it all the same
@pytest.mark.parametrize(
    ("make", "rows", "shape", "cache_bytes"),
    [(small_mlp, 512, (13,), 4 << 20), (lenet, 1, (1, 28, 28), 150_000)],
    ids=["mlp", "lenet"],
)
def test_ten_thousand_passes_hold_no_more_than_a_hundred_that_fill_a_chunk(
    make: Callable[[], nn.Module],
    rows: int,
    shape: tuple[int, ...],
    cache_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = replace(measured(), cache_bytes=cache_bytes)
    monkeypatch.setattr("service.run.measured", lambda: rates)
    monkeypatch.setattr("service.graph.drawing._store", Store(0))  # kept for other requests, up to its own bound
    x = torch.randn(rows, *shape)
    predictor = Predictor.capture(make().eval(), x[:1])
    predictor.predict(x, passes=2)  # its checks at first use are not the request's

    def peak(passes: int, **asked: list[str]) -> int:
        return peak_bytes(lambda: predictor.predict(x, passes=passes, **asked))

    few, many, kept = peak(FEW), peak(MANY), peak(MANY, quantities=["samples"])
    print(f"\n{make.__name__}: {few} bytes for {FEW} passes, {many} for {MANY}, {kept} with samples")
    assert many < 1.1 * few < kept
