"""How soon a model that lies on disk answers: `pytest tests/performance -s` prints the figures."""

import time
from pathlib import Path

import torch
from workloads import resnet

from service import Predictor

LIMIT_S = 3.0


def test_a_residual_network_answers_within_three_seconds_of_its_loading(tmp_path: Path) -> None:
    """Reading, checking and rewriting the graph, and the comparison of passes at first use; busy machines may retry."""
    x = torch.randn(1, 3, 64, 64)
    Predictor.capture(resnet().eval(), x).save(tmp_path / "resnet")

    def answered_s() -> float:
        began = time.perf_counter()
        predictor = Predictor.load(tmp_path / "resnet")
        loaded = time.perf_counter()
        predictor.predict(x, passes=100)
        answered = time.perf_counter()
        print(f"\nloaded in {loaded - began:.2f} s, answered after {answered - loaded:.2f} s more")
        return answered - began

    assert any(answered_s() < LIMIT_S for _ in range(3))
