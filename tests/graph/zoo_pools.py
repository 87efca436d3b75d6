"""Max pooling trained with noise, and layers that drop maxima."""

import torch
from specimen import WIDTH, Specimen, image, sequence
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import (
    MaskedMaxPool2d,
    MaxDrop2d,
    MaxPoolDropout1d,
    MaxPoolDropout2d,
    MaxPoolDropout3d,
    StochasticPool1d,
    StochasticPool2d,
)


def pooled(layer: nn.Module, size: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), layer, nn.Flatten(), nn.Linear(4 * size * size, 3))


class PooledFrames(nn.Module):
    """Frames folded into the rows, pooled there: each frame has masks of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.head = nn.Conv2d(1, 3, 3), MaxPoolDropout2d(2, p=0.4), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, frames = x.shape[:2]
        y: Tensor = self.head(self.pool(torch.relu(self.conv(x.flatten(0, 1)))).flatten(1)).view(rows, frames, 3)
        return y


class PooledSequence(nn.Module):
    """One pooling layer called twice on sequences, the second time on what stock pooling leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.pool, self.head = nn.Conv1d(WIDTH, 4, 3, padding=1), StochasticPool1d(2, 1, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(torch.relu(self.a(x.mT)))
        return self.head(self.pool(F.max_pool1d(y, 2)).mean(2))


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pool, self.head = MaxPoolDropout3d(2, 1, p=0.3), nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(torch.stack([x, x.square()], 2)).flatten(1))


class RowsSecond(nn.Module):
    """Channels in front of the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.head = MaxPoolDropout1d(2, p=0.4), nn.Linear(WIDTH // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(x.transpose(0, 1)).transpose(0, 1)).mean(1)


class PooledTable(nn.Module):
    """A learned table that has no batch axis, pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.pool = nn.Parameter(torch.randn(1, 4, WIDTH)), MaxPoolDropout1d(2, p=0.4)
        self.head = nn.Linear(WIDTH // 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x[..., : WIDTH // 2] + self.pool(self.table)).mean(1))


def video(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 2, 1, 6, 6),)


POOLS = (
    Specimen("max-pooling dropout, windows overlap", lambda: pooled(MaxPoolDropout2d(3, 2, 1, p=0.4), 3), image),
    Specimen("max-pooling dropout of frames", PooledFrames, video),
    Specimen("max-pooling dropout of volumes", Volumes, image),
    Specimen("max-pooling dropout, batch on axis 1", RowsSecond, sequence),
    Specimen("max-pooling dropout without a batch axis", PooledTable, sequence),
    Specimen("stochastic pooling beyond the end", lambda: pooled(StochasticPool2d(4, ceil_mode=True), 2), image),
    Specimen("stochastic pooling, called twice", PooledSequence, sequence),
    Specimen("masked max pooling", lambda: pooled(MaskedMaxPool2d(2, p=0.3), 3), image),
    Specimen("max-drop", lambda: pooled(MaxDrop2d(0.4), 6), image),
    Specimen("max-drop over channels", lambda: pooled(MaxDrop2d(0.4, over_channels=True), 6), image),
)
