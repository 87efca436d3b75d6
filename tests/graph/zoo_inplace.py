"""In-place dropout, and in-place operations around it."""

from collections.abc import Callable

import torch
from specimen import WIDTH, Specimen, features
from torch import Tensor, nn
from torch.nn import functional as F


class InplaceResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), nn.Dropout(0.4, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        y += self.drop(torch.tanh(y))
        y[:, 0] = y[:, 1] * 2
        y[:, 2:4].mul_(0.5)
        return self.b(y)


class AddAfterDropout(nn.Module):
    """The dropped tensor's input is changed in place after it: active noise sees the value before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        y = F.dropout(h, 0.4, self.training)
        h.add_(1)
        return self.b(y) + h.sum(1, keepdim=True)


class WritesItsInput(nn.Module):
    """Dropout that writes to its input, which is used again."""

    def __init__(self, drop: Callable[[Tensor, bool], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(WIDTH, 8), nn.Linear(8, 3), drop

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        return self.b(self.drop(h, self.training)) + h.sum(1, keepdim=True)


def dropout_(x: Tensor, training: bool) -> Tensor:
    return F.dropout(x, 0.4, training, inplace=True)


def alpha_dropout_(x: Tensor, training: bool) -> Tensor:
    return F.alpha_dropout(x, 0.3, training, inplace=True)


def feature_dropout_(x: Tensor, training: bool) -> Tensor:
    return F.dropout2d(x.view(-1, 2, 4, 1), 0.3, training, inplace=True).flatten(1)


def feature_alpha_dropout_(x: Tensor, training: bool) -> Tensor:
    return F.feature_alpha_dropout(x.view(-1, 2, 4), 0.3, training, inplace=True).flatten(1)


def in_a_row() -> nn.Module:
    layers = (nn.Linear(WIDTH, 8), nn.ReLU(inplace=True), nn.Dropout(0.4, inplace=True), nn.Linear(8, 8))
    return nn.Sequential(*layers, nn.Dropout(0.3), nn.ReLU(inplace=True), nn.Linear(8, 3))


INPLACE = (
    Specimen("in-place residual", InplaceResidual, features, eval_differs=True),
    Specimen("in-place add after dropout", AddAfterDropout, features, eval_differs=True),
    Specimen("in-place dropout", lambda: WritesItsInput(dropout_), features),
    Specimen("in-place alpha dropout", lambda: WritesItsInput(alpha_dropout_), features),
    Specimen("in-place spatial dropout", lambda: WritesItsInput(feature_dropout_), features),
    Specimen("in-place feature-alpha dropout", lambda: WritesItsInput(feature_alpha_dropout_), features),
    Specimen("in-place layers in a row", in_a_row, features),
)
