"""What passes and rows need, and how much the processor's cache holds of it."""

import pytest
import torch
from torch import nn

from service import Predictor
from service.graph import rates
from service.graph.footprint import Footprint
from service.plan import make_plan

MEGABYTE = 1 << 20


def footprint(network: nn.Module, *shape: int) -> Footprint:
    predictor, x = Predictor.capture(network.eval(), torch.randn(2, *shape)), torch.randn(1, *shape)
    return predictor.compile(make_plan(predictor.sites)).footprint((x,), per_row=False)


def test_noise_which_is_read_once_is_counted_beside_what_the_cache_should_hold() -> None:
    """Sixteen sites of 4 000 bytes a pass: the values of two or three of them are alive at a time."""
    layers = [layer for _ in range(16) for layer in (nn.Dropout(0.1), nn.ReLU())]
    found = footprint(nn.Sequential(nn.Linear(3, 1000), *layers, nn.Linear(1000, 1)), 3)

    assert 4_000 <= found.suffix.of(1) <= 3 * 4_000
    assert found.around.of(1) >= 6 * 16 * 4_000


@pytest.mark.parametrize("disturbed", [None, 2, 8, 16])
def test_the_cache_is_found_whatever_else_runs_for_a_moment(
    disturbed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def seconds(size: int) -> float:
        asked.append(size)
        is_slow = size > 16 * MEGABYTE or (size == (disturbed or 0) * MEGABYTE and asked.count(size) == 1)
        return size / (1e9 if is_slow else 4e9)

    monkeypatch.setattr(rates, "_filling_s", seconds)
    assert rates._cache_bytes() == 16 * MEGABYTE


def test_what_lies_between_two_powers_of_two_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_filling_s", lambda size: size / (1e9 if size > 13 * MEGABYTE else 4e9))
    assert rates._cache_bytes() == 12 * MEGABYTE
