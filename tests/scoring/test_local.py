"""A predictor of this process answers alike whatever the machine does meanwhile, a block of bearable size at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from service import Predictor
from service.graph.rates import Rates, assumed, measured
from service.scoring import Parameters, score_table
from service.scoring.block import Block
from service.scoring.local import LocalEngine, open_predictor


def block_rows(network: nn.Module, *shape: int, passes: int = 100) -> int:
    predictor = Predictor.capture(network.eval(), torch.randn(2, *shape))
    return LocalEngine(predictor, Parameters(passes=passes), {}).block_rows


def test_blocks_are_large_for_small_networks_and_small_for_large_ones() -> None:
    small = nn.Sequential(nn.Linear(13, 50), nn.ReLU(), nn.Dropout(0.05), nn.Linear(50, 1))
    large = nn.Sequential(nn.Linear(1024, 2048), nn.ReLU(), nn.Dropout(0.5), nn.Linear(2048, 1024))
    wide = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 128 * 128, 1))

    assert block_rows(small, 13) == 4096
    assert block_rows(large, 1024) == 16
    assert block_rows(large, 1024, passes=10_000) == 1
    assert block_rows(wide, 3, 128, 128, passes=2) == 128


def test_rates_that_were_measured_on_a_busy_machine_change_no_byte(
    predictor: Predictor, people: Path, tmp_path: Path
) -> None:
    for name, cache_bytes in (("idle", 1 << 26), ("busy", 1 << 10)):
        with assumed(Rates(1e9, 1e7, 1e7, 1e-3, cache_bytes)):
            fresh = Predictor(predictor._captured, predictor.inputs, predictor.outputs)
            score_table(people, tmp_path / f"{name}.parquet", open_predictor(fresh), Parameters(passes=60))

    assert (tmp_path / "idle.parquet").read_bytes() == (tmp_path / "busy.parquet").read_bytes()


def test_assumed_rates_are_forgotten_again() -> None:
    before = measured()
    with pytest.raises(RuntimeError, match="stop"), assumed(Rates(1, 1, 1, 1, 1)):
        raise RuntimeError("stop")

    assert measured() is before


def test_a_run_that_goes_on_takes_the_threads_that_it_began_with(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dict(LocalEngine(predictor, Parameters(), {}).kept)
    before, taken = torch.get_num_threads(), []  # type: ignore[var-annotated] # whole numbers
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    block = Block("row", None, np.zeros((2, 3), np.float32), 0)
    [*LocalEngine(predictor, Parameters(passes=2), kept | {"threads": 7}).answers(iter([block]))]

    assert kept["threads"] == 1
    assert taken == [7, before]


def test_a_network_is_told_from_another_by_its_numbers_and_what_they_mean(predictor: Predictor) -> None:
    def changed(**more: Any) -> str:
        return Predictor(predictor._captured, predictor.inputs, predictor.outputs, **more).fingerprint()

    assert changed() == predictor.fingerprint()
    assert changed(seed=1) != predictor.fingerprint()
    weight = next(iter(predictor._captured.program.graph.state_dict().values()))
    before, kept = predictor.fingerprint(), weight.clone()
    with torch.no_grad():
        weight += 1e-6
        assert predictor.fingerprint() != before
        weight.copy_(kept)
    assert predictor.fingerprint() == before


def test_what_the_run_was_is_in_the_parquet_file(predictor: Predictor, people: Path, tmp_path: Path) -> None:
    score_table(people, tmp_path / "out.parquet", open_predictor(predictor), Parameters(passes=9, seed=4))

    told = pq.read_schema(tmp_path / "out.parquet").metadata[b"thinnet"].decode()
    assert '"passes": 9' in told
    assert '"seed": 4' in told
