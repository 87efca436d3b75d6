"""Passes run in chunks that are alike, that memory holds at hand, and whose rows are a round number."""

from typing import Any

import pytest
import torch
from torch import nn

from service import Predictor, block, run
from service.graph.drawing import Draw
from service.run import Run


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many passes run together."""
    passes = []

    def noted(*arguments: Any) -> Draw:
        draw = Draw(*arguments)
        passes.append(draw.passes)
        return draw

    monkeypatch.setattr(block, "Draw", noted)
    return passes


def mlp(width: int = 8) -> Predictor:
    network = nn.Sequential(nn.Linear(3, width), nn.Dropout(0.5), nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.2))
    return Predictor.capture(nn.Sequential(network, nn.Linear(width, 2)).eval(), torch.randn(2, 3))


@pytest.mark.parametrize(
    ("rows", "passes", "most", "expected"),
    [
        (32, 50, 45, [25, 25]),
        (32, 100, 40, [40, 40, 20]),
        (32, 100, 39, [25, 25, 25, 25]),
        (32, 50, 13, [10, 10, 10, 10, 10]),
        (8, 50, 7, [5] * 10),
        (32, 89, 40, [32, 32, 25]),
        (7, 100, 40, [34, 34, 32]),
        (1, 7, 3, [3, 3, 1]),
        (1, 5, 1, [1, 1, 1, 1, 1]),
    ],
)
def test_chunks_are_alike_and_their_rows_a_round_number(
    rows: int, passes: int, most: int, expected: list[int], chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor, x = mlp(), torch.randn(rows, 3)
    whole = predictor.predict(x, passes=passes)
    monkeypatch.setattr(Run, "chunk", lambda *_: most)
    found = predictor.predict(x, passes=passes)

    assert chunks == expected
    torch.testing.assert_close(found.mean, whole.mean)
    torch.testing.assert_close(found.variance, whole.variance)


def test_chunks_grow_with_what_is_left_until_rows_may_end(chunks: list[int]) -> None:
    mlp().predict(torch.randn(4, 3), passes=512, tolerance=1e-9)

    assert chunks == [64, 64, 128, 256]


@pytest.mark.parametrize("rows", [1, 5])
def test_no_value_of_a_chunk_is_larger_than_memory_that_is_kept_at_hand(
    rows: int, chunks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger ones would be in new pages each time, which takes longer than to compute them."""
    monkeypatch.setattr(run, "KEPT_BYTES", 10 * 4 * 1000 * rows)
    mlp(1000).predict(torch.randn(rows, 3), passes=20)

    assert chunks == [10, 10]
