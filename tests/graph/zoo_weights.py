"""Weights used twice, tied, masked in training, or made anew at each call."""

import torch
from specimen import WIDTH, Specimen, features, tokens
from torch import Tensor, nn

from service.dropout import DropConnectLinear


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


WEIGHTS = (
    Specimen("tied weights", TiedWeights, tokens),
    Specimen("linear twice", LinearTwice, features),
    Specimen("raw parameter", RawParameter, features),
    Specimen("weight norm", weight_norm, features),
    Specimen("spectral norm", spectral, features),
    Specimen("dropconnect layer", dropconnect, features),
)
