"""Whether the layers by hand that passes are timed against have DropConnect's mean and variance, folded or not."""

import pytest
import torch
from by_hand import GaussianLinear, MaskedLinear, NoisyLinear

from service.dropout import DropConnectLinear
from service.dropout.dropconnect import product_variance

PASSES = 60_000


@pytest.mark.parametrize("make", [MaskedLinear, GaussianLinear])
@pytest.mark.parametrize("folded", [False, True])
def test_layers_by_hand_have_the_papers_moments(make: type[NoisyLinear], folded: bool) -> None:
    trained, x = DropConnectLinear(6, 3, p=0.3).eval(), torch.randn(2, 6)
    layer = make(trained)
    layer.passes = PASSES if folded else 0
    with torch.inference_mode():
        passes = layer(x) if folded else torch.stack([layer(x) for _ in range(PASSES)])
        mean, variance = trained(x), product_variance(x, trained.weight, trained.bias, 0.3)

    assert passes.shape == (PASSES, 2, 3)
    assert ((passes.mean(0) - mean).abs() < 5 * (variance / PASSES).sqrt()).all()
    kurtosis = (passes - passes.mean(0)).pow(4).mean(0) / variance.square()
    assert ((passes.var(0) / variance - 1).abs() < 5 * ((kurtosis - 1) / PASSES).sqrt()).all()
