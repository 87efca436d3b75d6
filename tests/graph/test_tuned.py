"""Operators in another form give what the plain ones give, and stand where they are meant to."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service import Predictor
from service.graph.tuned import convolve, linear
from service.plan import make_plan

CONVOLUTIONS = {
    "plain": ((5, 4, 3, 3), {}),
    "one number for two axes": ((5, 4, 3, 3), {"stride": [2], "padding": [1], "dilation": [2]}),
    "stride and padding": ((5, 4, 3, 2), {"stride": [2, 1], "padding": [1, 0]}),
    "groups": ((6, 2, 3, 3), {"groups": 2}),
}


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("case", CONVOLUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_convolution_is_torchs(case: str, rows: int, dtype: torch.dtype) -> None:
    shape, geometry = CONVOLUTIONS[case]
    x, weight, bias = (torch.randn(size).to(dtype) for size in ((rows, 4, 9, 8), shape, (shape[0],)))

    torch.testing.assert_close(convolve(x, weight, bias, **geometry), F.conv2d(x, weight, bias, **geometry))


def test_a_convolution_takes_values_in_any_order_of_memory() -> None:
    x, weight = (
        torch.randn(1, 8, 9, 4).movedim(-1, 1),
        torch.randn(5, 4, 3, 3).contiguous(memory_format=torch.channels_last),
    )

    torch.testing.assert_close(convolve(x, weight), F.conv2d(x, weight))


def test_a_linear_layer_is_torchs_in_any_order_of_axes() -> None:
    x, weight, bias = torch.randn(3, 4, 5), torch.randn(6, 5), torch.randn(6)

    for given in (x, x.transpose(0, 1), x.flatten(0, 1)):
        torch.testing.assert_close(linear(given, weight, bias), F.linear(given, weight, bias))


def test_networks_run_on_them() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = F.dropout(self.body(x).flatten(2), 0.5, self.training)
            z: Tensor = self.head(y.movedim(1, 2)).mean(1)
            return z

    predictor = Predictor.capture(Network(), torch.randn(2, 1, 6, 6))
    split = predictor._compile(make_plan(predictor.sites))._split
    targets = [[node.target for node in module.graph.nodes] for module in (split.trunk, split.suffix)]
    assert convolve in targets[0]
    assert linear in targets[1]
