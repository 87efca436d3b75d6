"""Every layer to train with: in a small network that reads digits, and alone on a small input for its gradients."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.dropout import (
    ConcreteDropout,
    Cutout2d,
    DropBlock2d,
    DropConnectConv2d,
    DropConnectLinear,
    DropoutGRU,
    DropoutLSTM,
    GaussianDropout,
    LayerDropPath,
    LearnedVariationalLinear,
    LockedDropout,
    MaskedMaxPool2d,
    Masksembles1d,
    Masksembles2d,
    MaxDrop2d,
    MaxPoolDropout2d,
    ShakeDropPath,
    ShakeoutLinear,
    ShakeShakeMix,
    SparseVariationalLinear,
    SpatialConcreteDropout,
    StandoutGate,
    StandoutLinear,
    StochasticPool2d,
    TargetedLinear,
    UniformDropout,
    VariationalLinear,
    VariationalRNN,
    WeightDropGRU,
    WeightDropLSTM,
    WordDropoutEmbedding,
    Zoneout,
)

TRAINING_ROWS = 1400


@dataclass(frozen=True)
class Trainable:
    """A layer, and what it can be trained in.

    Attributes:
        layer: Make the layer alone.
        inputs: The shapes of small inputs for it.
        network: Make a network [B, 64] → [B, 10] with the layer.
        extra: What it adds to the mean loss.
        own_gradient: Whether its backward pass is, on purpose, not its forward pass's derivative.
    """

    layer: Callable[[], nn.Module]
    inputs: tuple[tuple[int, ...], ...]
    network: Callable[[], nn.Module]
    extra: Callable[[nn.Module], Tensor] | None = None
    own_gradient: bool = False


class Branch(nn.Module):
    """A residual branch under a layer that drops or mixes branches."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.drop, self.c = nn.Linear(64, 64), nn.Linear(64, 64), drop, nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        f1, f2 = torch.relu(self.a(x)), torch.relu(self.b(x))
        return self.c(x + (self.drop(f1, f2) if isinstance(self.drop, ShakeShakeMix) else self.drop(f1)))


class Gated(nn.Module):
    """A gate that is given pre-activations and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gate, self.c = nn.Linear(64, 64), StandoutGate(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        u = self.a(x)
        return self.c(self.gate(u, torch.relu(u)))


class Pixels(nn.Module):
    """Pixels as words: one of 17 intensities at each of 64 places."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.c = WordDropoutEmbedding(17, 4, p=0.1), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.embed((x * 16).round().long()).flatten(1))


class Lines(nn.Module):
    """A digit as a sequence of 8 lines, read by a recurrent layer."""

    def __init__(self, cell: nn.RNNBase, drop: nn.Module | None = None) -> None:
        super().__init__()
        self.cell, self.drop, self.c = cell, drop or nn.Identity(), nn.Linear(cell.hidden_size, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.drop(self.cell(x.unflatten(1, (8, 8)))[0])[:, -1])


def between(drop: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), drop, nn.Linear(64, 10))


def first(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(64, 10))


def maps(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers, nn.Flatten(), nn.Linear(10 * 36, 10))


def pooled(*layers: nn.Module) -> nn.Module:
    maps = nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*maps, *layers, nn.Flatten(), nn.Linear(128, 10))


def divergence(network: nn.Module) -> Tensor:
    return network[0].kl() / TRAINING_ROWS  # type: ignore[index, operator] # a Sequential that opens with the layer


def concrete_term(network: nn.Module) -> Tensor:
    return network[2].regulariser(network[3], 1e-5, 1e-3)  # type: ignore[index, operator] # `between`


WIDE = ((3, 5),)
SMALL_MAP = ((2, 2, 4, 4),)
TRAINABLE: dict[str, Trainable] = {
    "GaussianDropout": Trainable(GaussianDropout, WIDE, lambda: between(GaussianDropout())),
    "UniformDropout": Trainable(UniformDropout, WIDE, lambda: between(UniformDropout())),
    "ConcreteDropout": Trainable(ConcreteDropout, WIDE, lambda: between(ConcreteDropout()), concrete_term),
    "SpatialConcreteDropout": Trainable(
        SpatialConcreteDropout, ((2, 3, 2),), lambda: maps(nn.Conv2d(1, 10, 3), SpatialConcreteDropout(), nn.ReLU())
    ),
    "LayerDropPath": Trainable(LayerDropPath, WIDE, lambda: Branch(LayerDropPath())),
    "ShakeDropPath": Trainable(ShakeDropPath, WIDE, lambda: Branch(ShakeDropPath(0.2)), own_gradient=True),
    "ShakeShakeMix": Trainable(ShakeShakeMix, WIDE * 2, lambda: Branch(ShakeShakeMix()), own_gradient=True),
    "StandoutGate": Trainable(StandoutGate, WIDE * 2, Gated),
    "StandoutLinear": Trainable(
        lambda: StandoutLinear(5, 4, torch.tanh),
        WIDE,
        lambda: nn.Sequential(StandoutLinear(64, 64), nn.Linear(64, 10)),
    ),
    "Masksembles1d": Trainable(lambda: Masksembles1d(12), ((4, 12),), lambda: between(Masksembles1d(64))),
    "Masksembles2d": Trainable(
        lambda: Masksembles2d(12),
        ((4, 12, 2, 1),),
        lambda: maps(nn.Conv2d(1, 10, 3), Masksembles2d(10), nn.ReLU()),
    ),
    "DropConnectLinear": Trainable(lambda: DropConnectLinear(5, 3), WIDE, lambda: first(DropConnectLinear(64, 64))),
    "DropConnectConv2d": Trainable(
        lambda: DropConnectConv2d(1, 2, 2), ((2, 1, 3, 3),), lambda: maps(DropConnectConv2d(1, 10, 3), nn.ReLU())
    ),
    "VariationalLinear": Trainable(lambda: VariationalLinear(5, 3), WIDE, lambda: first(VariationalLinear(64, 64))),
    "LearnedVariationalLinear": Trainable(
        lambda: LearnedVariationalLinear(5, 3), WIDE, lambda: first(LearnedVariationalLinear(64, 64)), divergence
    ),
    "SparseVariationalLinear": Trainable(
        lambda: SparseVariationalLinear(5, 3), WIDE, lambda: first(SparseVariationalLinear(64, 64)), divergence
    ),
    "ShakeoutLinear": Trainable(lambda: ShakeoutLinear(5, 3), WIDE, lambda: first(ShakeoutLinear(64, 64))),
    "TargetedLinear": Trainable(lambda: TargetedLinear(5, 3), WIDE, lambda: first(TargetedLinear(64, 64))),
    "WordDropoutEmbedding": Trainable(lambda: WordDropoutEmbedding(7, 3), (), Pixels),
    "MaxPoolDropout2d": Trainable(lambda: MaxPoolDropout2d(2), SMALL_MAP, lambda: pooled(MaxPoolDropout2d(2))),
    "MaskedMaxPool2d": Trainable(lambda: MaskedMaxPool2d(2), SMALL_MAP, lambda: pooled(MaskedMaxPool2d(2))),
    "StochasticPool2d": Trainable(lambda: StochasticPool2d(2), SMALL_MAP, lambda: pooled(StochasticPool2d(2))),
    "MaxDrop2d": Trainable(MaxDrop2d, SMALL_MAP, lambda: pooled(MaxDrop2d(), nn.MaxPool2d(2))),
    "LockedDropout": Trainable(
        LockedDropout, ((2, 3, 4),), lambda: Lines(nn.GRU(8, 48, batch_first=True), LockedDropout(0.2))
    ),
    "WeightDropLSTM": Trainable(
        lambda: WeightDropLSTM(3, 2, batch_first=True),
        ((2, 3, 3),),
        lambda: Lines(WeightDropLSTM(8, 48, batch_first=True, p=0.2)),
    ),
    "WeightDropGRU": Trainable(
        lambda: WeightDropGRU(3, 2, batch_first=True),
        ((2, 3, 3),),
        lambda: Lines(WeightDropGRU(8, 48, batch_first=True, p=0.2)),
    ),
    "DropoutLSTM": Trainable(
        lambda: DropoutLSTM(3, 2, batch_first=True, variant=VariationalRNN(0.3)),
        ((2, 3, 3),),
        lambda: Lines(DropoutLSTM(8, 48, batch_first=True, variant=VariationalRNN(0.2))),
    ),
    "DropoutGRU": Trainable(
        lambda: DropoutGRU(3, 2, batch_first=True, variant=Zoneout(0.3)),
        ((2, 3, 3),),
        lambda: Lines(DropoutGRU(8, 48, batch_first=True, variant=Zoneout(0.1))),
    ),
    "DropBlock2d": Trainable(
        lambda: DropBlock2d(0.4, 2), SMALL_MAP, lambda: maps(nn.Conv2d(1, 10, 3), DropBlock2d(0.1, 3), nn.ReLU())
    ),
    "Cutout2d": Trainable(lambda: Cutout2d(2), SMALL_MAP, lambda: maps(Cutout2d(2), nn.Conv2d(1, 10, 3), nn.ReLU())),
}
