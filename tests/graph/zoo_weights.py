"""Weights used twice, tied, masked in training, or made anew at each call."""

import torch
from specimen import WIDTH, Specimen, features, image, tokens
from torch import Tensor, nn

from service.dropout import (
    DropConnectConv2d,
    DropConnectLinear,
    LearnedVariationalLinear,
    ShakeoutLinear,
    SparseVariationalLinear,
    TargetedLinear,
    VariationalLinear,
    WordDropoutEmbedding,
)


class TiedWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.drop = nn.Embedding(7, WIDTH), nn.Dropout(0.4)
        self.head = nn.Linear(WIDTH, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.drop(self.embed(tokens)).mean(1))


class LinearTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.drop(torch.relu(self.a(x))))


class RawParameter(nn.Module):
    """A parameter that multiplies from the right, not transposed, beside dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.drop = nn.Parameter(torch.randn(WIDTH, 3)), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) @ self.weight


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(WIDTH, 8)), nn.Dropout(0.4))


def weight_norm() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, 8)), nn.Dropout(0.4), nn.Linear(8, 3))


def dropconnect() -> nn.Module:
    return nn.Sequential(DropConnectLinear(WIDTH, 8, p=0.3), nn.ReLU(), nn.Linear(8, 3))


def convolutions() -> nn.Module:
    """Convolutions whose weights can be masked, with batch norm and dropout."""
    return nn.Sequential(
        *(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Dropout2d(0.4)),
        *(nn.Conv2d(3, 3, 3, groups=3), nn.Flatten(), nn.Linear(48, 3)),
    )


def variational_a() -> nn.Module:
    return nn.Sequential(VariationalLinear(WIDTH, 8, p=0.3), nn.ReLU(), nn.Linear(8, 3))


def variational_b() -> nn.Module:
    return nn.Sequential(VariationalLinear(WIDTH, 8, p=0.3, per_input=True), nn.ReLU(), nn.Linear(8, 3))


def shakeout() -> nn.Module:
    return nn.Sequential(ShakeoutLinear(WIDTH, 8, p=0.3, c=0.2), nn.ReLU(), nn.Linear(8, 3))


def sampled_dropconnect() -> nn.Module:
    return nn.Sequential(DropConnectLinear(WIDTH, 8, p=0.3, sampled=True), nn.ReLU(), nn.Linear(8, 3))


def masked_convolution() -> nn.Module:
    return nn.Sequential(
        DropConnectConv2d(1, 4, 3, stride=2, padding=1, p=0.3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )


def targeted_weights() -> nn.Module:
    return nn.Sequential(TargetedLinear(WIDTH, 8, p=0.3), nn.ReLU(), nn.Linear(8, 3))


def targeted_units() -> nn.Module:
    return nn.Sequential(TargetedLinear(WIDTH, 8, p=0.3, units=True), nn.ReLU(), nn.Linear(8, 3))


def sparse_variational() -> nn.Module:
    """Noise that differs from weight to weight, some of it enough to prune the weight in eval mode."""
    layer = SparseVariationalLinear(WIDTH, 8)
    with torch.no_grad():
        layer.log_variance.normal_(-2, 2)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 3))


def learned_variational() -> nn.Module:
    """Learned rates, of type A and then of type B."""
    return nn.Sequential(
        *(LearnedVariationalLinear(WIDTH, 8, p=0.3), nn.ReLU(), LearnedVariationalLinear(8, 3, p=0.2, per_input=True))
    )


class DroppedWords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = WordDropoutEmbedding(7, WIDTH, p=0.3), nn.Linear(WIDTH, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(torch.relu(self.embed(tokens).mean(1)))


WEIGHTS = (
    Specimen("convolutions", convolutions, image),
    Specimen("variational layer, type A", variational_a, features),
    Specimen("variational layer, type B", variational_b, features),
    Specimen("sparse variational layer", sparse_variational, features),
    Specimen("variational layers of learned rates", learned_variational, features),
    Specimen("shakeout layer", shakeout, features),
    Specimen("masked convolution", masked_convolution, image),
    Specimen("targeted weights", targeted_weights, features),
    Specimen("targeted units", targeted_units, features),
    Specimen("dropped words", DroppedWords, tokens),
    Specimen("tied weights", TiedWeights, tokens),
    Specimen("linear twice", LinearTwice, features),
    Specimen("raw parameter", RawParameter, features),
    Specimen("weight norm", weight_norm, features),
    Specimen("spectral norm", spectral, features),
    Specimen("dropconnect layer", dropconnect, features),
    Specimen("dropconnect layer, sampled units", sampled_dropconnect, features),
)
