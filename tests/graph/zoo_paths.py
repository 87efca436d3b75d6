"""Drop path as the libraries write it, and Python's own random numbers."""

import random

import torch
from specimen import WIDTH, Specimen, features, sequence
from torch import Tensor, nn

from service.dropout import LayerDropPath, ShakeDropPath, ShakeShakeMix, StandoutGate, StandoutLinear


class PythonRandom(nn.Module):
    """Hugging Face's LayerDrop: skipped by Python's own random numbers in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.drop = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or random.random() >= 0.5:
            x = torch.relu(self.a(x))
        return self.b(self.drop(x))


class TimmDropPath(nn.Module):
    def __init__(self, rate: float = 0.3) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(keep)
        if keep > 0:
            mask.div_(keep)
        return x * mask


class HuggingFaceDropPath(TimmDropPath):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1 - self.rate
        mask = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        mask.floor_()
        return x.div(keep) * mask


class TorchvisionStochasticDepth(TimmDropPath):
    """Stochastic depth in its batch mode: one draw for all rows."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        noise = torch.empty([1] * x.ndim, dtype=x.dtype, device=x.device)
        noise = noise.bernoulli_(1 - self.rate)
        noise.div_(1 - self.rate)
        return x * noise


class Residual(nn.Module):
    def __init__(self, path: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.path = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), path

    def forward(self, x: Tensor) -> Tensor:
        return self.b(x + self.path(torch.tanh(self.a(x))))


class TwoBranches(nn.Module):
    """One branch behind dropout, so that noise reaches one of two tensors that meet at a site."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.c, self.drop = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3), drop
        self.mix = ShakeShakeMix()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(x + self.mix(torch.tanh(self.a(x)), self.drop(self.b(x))))


class GateOfItself(nn.Module):
    """A standout site whose two tensors are one, on a sequence with the rows on axis 1."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate = nn.Linear(WIDTH, 3), StandoutGate(1.5, -0.5)

    def forward(self, x: Tensor) -> Tensor:
        u = self.a(x).transpose(0, 1)
        return self.gate(u, u).mean(0)


def standouts() -> nn.Module:
    return nn.Sequential(
        StandoutLinear(WIDTH, 8), StandoutLinear(8, 5, torch.tanh, alpha=2.0, beta=0.0), nn.Linear(5, 3)
    )


PATHS = (
    Specimen("drop path (timm)", lambda: Residual(TimmDropPath()), features),
    Specimen("drop path (Hugging Face)", lambda: Residual(HuggingFaceDropPath()), features),
    Specimen("shake-shake", lambda: TwoBranches(nn.Identity()), features),
    Specimen("shake-shake after dropout in one branch", lambda: TwoBranches(nn.Dropout(0.4)), features),
    Specimen("standout layers", standouts, features),
    Specimen("standout of one tensor, batch on axis 1", GateOfItself, sequence),
    Specimen("layer drop", lambda: Residual(LayerDropPath(0.3)), features),
    Specimen("shake drop", lambda: Residual(ShakeDropPath(0.3)), features),
    Specimen("stochastic depth (batch)", lambda: Residual(TorchvisionStochasticDepth()), features),
)
