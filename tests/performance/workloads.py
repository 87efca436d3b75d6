"""The networks that passes are timed on: what they are, how many rows and passes, and where a user would cut them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.dropout import DropConnectLinear


@dataclass(frozen=True)
class Workload:
    """A network and how much is asked of it.

    Attributes:
        name: What it is.
        make: Makes the network.
        shape: The shape of a row.
        rows: Numbers of rows.
        passes: How many passes.
        trunk: How many of a sequential network's layers stand before the first dropout; None where none do.
    """

    name: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    rows: tuple[int, ...]
    passes: int
    trunk: int | None = None

    def build(self) -> nn.Module:
        """Make the network with fixed weights, in eval mode."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make().eval()

    def inputs(self, rows: int) -> Tensor:
        """Return the same rows each time [B, …]."""
        return torch.randn(rows, *self.shape, generator=torch.Generator().manual_seed(rows))


def small_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(13, 50), nn.ReLU(), nn.Dropout(0.05), nn.Linear(50, 1))


def wide_mlp() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside in (64, 1024, 1024):
        layers += [nn.Linear(inside, 1024), nn.ReLU(), nn.Dropout(0.5)]
    return nn.Sequential(*layers, nn.Linear(1024, 10))


def lenet() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(800, 500), nn.ReLU(), nn.Dropout(0.5), nn.Linear(500, 10),
    )  # fmt: skip


def vgg() -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside in ((3, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(inside, outside, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout2d(0.25)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))


class Block(nn.Module):
    """The basic block of a residual network (He et al. 2016)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.second, self.again = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        plain = stride == 1 and inside == outside
        self.shortcut = nn.Identity() if plain else nn.Conv2d(inside, outside, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.second(torch.relu(self.norm(self.first(x)))))
        return torch.relu(y + self.shortcut(x))


def resnet() -> nn.Sequential:
    """The 18-layer network of He et al. (2016), one dropout before its head; 200 classes, as Tiny ImageNet has."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    blocks = []
    for inside, outside, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        blocks += [Block(inside, outside, stride), Block(outside, outside, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(512, 200)]
    return nn.Sequential(*stem, *blocks, *head)


class Encoder(nn.Module):
    """A stock encoder and a linear layer on the average."""

    def __init__(self, width: int = 256, heads: int = 4, hidden: int = 1024, layers: int = 4) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(width, heads, hidden, 0.1, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, layers), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.encoder(x).mean(1))
        return y


class Recurrent(nn.Module):
    """Two LSTM layers with dropout between them, and a linear layer on the last output."""

    def __init__(self, width: int = 16, hidden: int = 128) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(width, hidden, 2, batch_first=True, dropout=0.3), nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.lstm(x)[0][:, -1])
        return y


def dropconnect(sampled: bool) -> nn.Sequential:
    def layer(inside: int, outside: int) -> DropConnectLinear:
        return DropConnectLinear(inside, outside, p=0.5, sampled=sampled)

    return nn.Sequential(layer(784, 1024), nn.ReLU(), layer(1024, 1024), nn.ReLU(), layer(1024, 10))


WORKLOADS = (
    Workload("MLP 13-50-1", small_mlp, (13,), (1, 512), 1000, 2),
    Workload("MLP 64-1024x3-10", wide_mlp, (64,), (1, 64, 1024), 100, 2),
    Workload("LeNet", lenet, (1, 28, 28), (1, 128), 100, 7),
    Workload("VGG-like", vgg, (3, 32, 32), (1, 16), 50, 3),
    Workload("ResNet, dropout head", resnet, (3, 64, 64), (1, 8), 100, 14),
    Workload("TransformerEncoder", Encoder, (32, 256), (1, 8), 50),
    Workload("LSTM", Recurrent, (50, 16), (1, 32), 50),
    Workload("DropConnect, masks", lambda: dropconnect(False), (784,), (1, 128), 100),
    Workload("DropConnect, sampled", lambda: dropconnect(True), (784,), (1, 128), 100),
)
