"""What passes and rows need, and how much the processor's cache holds of it."""

from pathlib import Path

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
    moments: list[int] = []

    def seconds(size: int) -> float:
        moments.append(size)
        is_disturbed = size >= (disturbed or 1024) * MEGABYTE and len(moments) < 9
        return size / (1e9 if is_disturbed or size > 16 * MEGABYTE else 4e9)

    monkeypatch.setattr(rates, "_filling_s", seconds)
    monkeypatch.setattr(rates, "_CACHES", Path("/nowhere"))
    assert rates._cache_bytes() == 16 * MEGABYTE


def test_what_lies_between_two_powers_of_two_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_filling_s", lambda size: size / (1e9 if size > 13 * MEGABYTE else 4e9))
    monkeypatch.setattr(rates, "_CACHES", Path("/nowhere"))
    assert rates._cache_bytes() == 12 * MEGABYTE


def test_a_busy_machine_hides_no_more_than_a_part_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index, told in enumerate(("32K", "1024K", "65536K", "odd")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(f"{told}\n")
    monkeypatch.setattr(rates, "_filling_s", lambda size: size / (1e9 if size > MEGABYTE else 4e9))
    monkeypatch.setattr(rates, "_CACHES", tmp_path)
    assert rates._cache_bytes() == 16 * MEGABYTE
