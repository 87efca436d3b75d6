"""Whether the passes that a kurtosis asks for leave the error that they should."""

import math

import pytest
import torch
from deviation_error import LIMIT, SEEDS, Reference, enough
from workloads import small_mlp

from service import Predictor


def test_the_passes_asked_for_leave_the_error_that_they_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deviation_error._MOST", 10_000)
    x = torch.randn(4, 13)
    predictor = Predictor.capture(small_mlp().eval(), x[:1])
    reference = Reference.of(predictor, x)
    exact = predictor.predict(x, passes=2, estimator="integrated").variance.sqrt()

    assert ((reference.deviation / exact - 1).abs() < 5 * reference.own_error).all()
    shown = reference.error(passes=reference.needed)
    assert abs(shown / LIMIT - 1) < 5 / math.sqrt(2 * SEEDS)
    assert reference.error(passes=reference.needed // 4) > 1.5 * shown


def test_passes_are_added_until_the_error_is_kept() -> None:
    assert enough(lambda passes: 0.5 / math.sqrt(passes), 50) == (100, LIMIT)
