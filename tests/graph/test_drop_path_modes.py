"""Drop path for a whole batch and for single rows, as the libraries write both, against loops written by hand."""

import pytest
import torch
from moments import assert_same_moments
from specimen import WIDTH, features
from torch import Tensor, nn
from zoo_paths import HuggingFaceDropPath, Residual, TimmDropPath, TorchvisionStochasticDepth

from service import Predictor
from service.errors import UnclaimedRandomness

PASSES = 5000


class StochasticDepthOfRows(TorchvisionStochasticDepth):
    """torchvision.ops.StochasticDepth in its row mode."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = torch.empty([x.shape[0]] + [1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        noise = noise.bernoulli_(1 - self.rate)
        noise.div_(1 - self.rate)
        return x * noise


MODES = {
    "torchvision, batch": (TorchvisionStochasticDepth, "pass"),
    "torchvision, row": (StochasticDepthOfRows, "row"),
    "timm": (TimmDropPath, "row"),
    "Hugging Face": (HuggingFaceDropPath, "row"),
}


def loop(network: nn.Module, x: Tensor) -> Tensor:
    """Run the network in training mode, pass by pass [N, B, outputs]."""
    with torch.no_grad():
        return torch.stack([network.train()(x) for _ in range(PASSES)])


@pytest.mark.parametrize("mode", MODES)
def test_rows_fall_together_or_apart_as_they_did_in_training(mode: str) -> None:
    """Every row's moments, and those of the rows' sum, which tell one draw for the batch from one for each row."""
    path, scope = MODES[mode]
    torch.manual_seed(4)
    network, x = Residual(path(0.3)).eval(), features(3)[0]
    predictor = Predictor.capture(network, x)
    mine = predictor.predict(x, passes=PASSES, scope=scope, quantities=["samples"]).outputs["output"]["samples"]
    mine, theirs = mine.transpose(0, 1).double(), loop(network, x).double()
    together, theirs_together = (torch.cat([each, each.sum(1, keepdim=True)], 1) for each in (mine, theirs))

    assert [(site.variant, site.p) for site in predictor.sites if site.is_trained] == [("drop-path", 0.3)]
    assert_same_moments(together.mean(0), together.var(0), theirs_together)


@pytest.mark.parametrize("mode", MODES)
def test_the_other_scope_would_be_another_network(mode: str) -> None:
    """The comparison above can fail: with rows the other way the variance of their sum is far off."""
    path, scope = MODES[mode]
    torch.manual_seed(4)
    network, x = Residual(path(0.3)).eval(), features(1)[0].expand(3, -1)
    predictor = Predictor.capture(network, x)
    sums = {}
    for each in ("pass", "row"):
        samples = predictor.predict(x, passes=PASSES, scope=each, quantities=["samples"]).outputs["output"]["samples"]
        sums[each] = samples.sum(0).var(0)
    theirs = loop(network, x).sum(1).var(0)

    torch.testing.assert_close(sums["pass"], 3 * sums["row"], rtol=0.2, atol=0)
    torch.testing.assert_close(sums[scope], theirs, rtol=0.2, atol=0)


class NeverSurvives(nn.Module):
    """Both libraries at a survival rate of 0: they do not divide by it, and the branch is gone in every pass."""

    def __init__(self, ones: bool) -> None:
        super().__init__()
        self.ones = ones

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(1 if self.ones else x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(0.0)


class TimmWithoutScale(nn.Module):
    """timm's DropPath with scale_by_keep=False: its eval form is not its mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(0.7) if self.training else x


@pytest.mark.parametrize(
    "path",
    [NeverSurvives(True), NeverSurvives(False), TimmWithoutScale()],
    ids=["batch, survival 0", "row, survival 0", "scale_by_keep=False"],
)
def test_a_path_that_is_not_rescaled_is_refused(path: nn.Module) -> None:
    with pytest.raises(UnclaimedRandomness, match=r"aten\.bernoulli_\.float in module 'path' .* no site accounts for"):
        Predictor.capture(Residual(path), torch.randn(2, WIDTH))
