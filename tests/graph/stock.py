"""One small network of each family, of torch's own layers and trained without any dropout."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from math import prod

import torch
from specimen import Block
from torch import Tensor, nn

from service import Predictor


class Recurrent(nn.Module):
    """Two recurrent layers, and a linear layer on the last output."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn, self.head = kind(3, 5, 2, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.rnn(x)[0][:, -1])
        return result


class TwoLayers(nn.Module):
    """`Recurrent` once more, its layers one by one so that a hook can stand between them."""

    def __init__(self, stock: Recurrent) -> None:
        super().__init__()
        kind = type(stock.rnn)
        self.first, self.between, self.second = (
            kind(3, 5, batch_first=True),
            nn.Identity(),
            kind(5, 5, batch_first=True),
        )
        self.head = stock.head
        state = stock.rnn.state_dict()
        for layer, own in enumerate((self.first, self.second)):
            own.load_state_dict({name: state[name.replace("_l0", f"_l{layer}")] for name in own.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.second(self.between(self.first(x)[0]))[0][:, -1])
        return result


class Encoder(nn.Module):
    """A stock encoder with a linear layer on the average."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.encoder(x).mean(1))
        return result


@dataclass(frozen=True)
class Family:
    """A network, one row for it, and where by hand its sites are.

    Attributes:
        make: Makes the network.
        shape: The shape of a row.
        least: How many variants a request alone must be able to activate.
        hooks: By site, the submodule whose output stands there.
        by_hand: Makes the network that the hooks are put into, where it is not the stock one.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    least: int
    hooks: dict[str, str]
    by_hand: Callable[[nn.Module], nn.Module] = field(default=lambda stock: stock)


def _mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 12), nn.SELU(), nn.Linear(12, 2))


def _vgg() -> nn.Sequential:
    features = nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(10, 4, 3, padding=1), nn.ReLU()
    return nn.Sequential(*features, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 6), nn.ReLU(), nn.Linear(6, 2))


def _resnet() -> nn.Sequential:
    stem = nn.Conv2d(1, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
    return nn.Sequential(*stem, Block(10, 10), Block(10, 4, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def _recurrent(kind: type[nn.LSTM] | type[nn.GRU]) -> Family:
    return Family(lambda: Recurrent(kind), (4, 3), 8, {"rnn.layer_0": "between"}, TwoLayers)  # type: ignore[arg-type] # a Recurrent


FAMILIES = {
    "MLP": Family(_mlp, (5,), 8, {"1": "1", "3": "3"}),
    "VGG-like CNN": Family(_vgg, (1, 8, 8), 12, {"1": "1", "8": "8"}),
    "ResNet": Family(_resnet, (1, 8, 8), 12, {"2": "2", "4.branch": "4.bn2", "5.branch": "5.bn2"}),
    "TransformerEncoder": Family(
        Encoder, (4, 8), 8, {f"encoder.layers.0.{each}": f"encoder.layers.0.{each}" for each in ("dropout", "dropout1")}
        | {"encoder.layers.0.branch": "encoder.layers.0.dropout1"},
    ),
    "LSTM": _recurrent(nn.LSTM),
    "GRU": _recurrent(nn.GRU),
}  # fmt: skip


@functools.cache
def stock(family: str) -> tuple[nn.Module, Tensor, Predictor]:
    """Return a family's network in eval mode, one row for it, and its predictor."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = FAMILIES[family].make().eval()
    shape = FAMILIES[family].shape
    x = torch.linspace(-1, 1.5, prod(shape)).sin().reshape(1, *shape)
    return network, x, Predictor.capture(network, x)


def by_request(family: str) -> dict[str, list[str]]:
    """Return the variants that fit each site of a family's network."""
    predictor = stock(family)[2]
    return {site.name: list(predictor.fitting(site.name)) for site in predictor.sites}
