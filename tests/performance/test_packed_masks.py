"""What exact weight masks cost beside the layer's own, drawn one by one, in the same run."""

import torch
from timing import least_s
from torch import Tensor, nn

from service import Predictor
from service.dropout import DropConnectLinear

PASSES = 20


def test_packed_masks_are_three_times_as_fast_as_the_layers_own() -> None:
    network, x = (
        nn.Sequential(DropConnectLinear(512, 1024), nn.ReLU(), DropConnectLinear(1024, 512)),
        torch.randn(1, 512),
    )
    predictor = Predictor.capture(network.eval(), x)
    network.train()

    def loop() -> Tensor:
        with torch.inference_mode():
            return torch.stack([network(x) for _ in range(PASSES)]).var(0)

    predictor.predict(x, passes=PASSES)
    mine, theirs = least_s(lambda: predictor.predict(x, passes=PASSES)), least_s(loop)
    print(f"\n{PASSES} passes: {mine * 1e3:.1f} ms, hand loop {theirs * 1e3:.1f} ms")
    assert mine * 3 < theirs
