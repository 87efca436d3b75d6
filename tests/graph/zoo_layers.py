"""Dropout layers and their functional forms, alone and before normalisation."""

import torch
from specimen import WIDTH, Specimen, features, image, mlp, sequence
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import ConcreteDropout, GaussianDropout, SpatialConcreteDropout, UniformDropout


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(torch.relu(self.a(x)), 0.4, self.training))


class NativeDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.native_dropout(torch.relu(self.a(x)), 0.4, self.training)[0])


class AlwaysOn(nn.Module):
    """Monte-Carlo dropout by hand: functional dropout that does not look at the training flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(torch.relu(self.a(x)), p=0.4))


class NormAfterDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.norm.running_mean = torch.linspace(-1, 1, 8)
        self.norm.running_var = torch.linspace(0.5, 2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.norm(F.dropout(self.a(x), 0.3, self.training)))


class ConvSpatial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(1, 4, 3), nn.Dropout2d(0.3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.max_pool2d(self.norm(self.drop(torch.relu(self.conv(x)))), 2).flatten(1))


class PositionDropout(nn.Module):
    """Dropout on a learned table that has no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = nn.Parameter(torch.randn(1, 4, WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + F.dropout(self.position, 0.4, self.training)).mean(1))


class Frames(nn.Module):
    """Frames folded into the rows: spatial dropout has one draw for each channel of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.drop, self.head = nn.Conv2d(1, 4, 3), nn.Dropout2d(0.4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows, frames = x.shape[:2]
        y = self.drop(torch.relu(self.conv(x.flatten(0, 1)))).mean((2, 3))
        return self.head(y).view(rows, frames, 3)


class ChannelsBeforeRows(nn.Module):
    """Spatial dropout with the rows on axis 2: its draws are shared by all rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = nn.Linear(WIDTH, 3), nn.Dropout2d(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.a(x).permute(1, 2, 0)[..., None]).squeeze(-1).permute(2, 0, 1)


class TableOfChannels(nn.Module):
    """Spatial dropout on a learned table that has no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = nn.Parameter(torch.randn(1, 4, WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + F.dropout1d(self.position, 0.4, self.training)).mean(1))


class LayerTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.a(self.drop(torch.relu(x))))


def concrete_maps() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), SpatialConcreteDropout(0.3), nn.Flatten(), nn.Linear(64, 3))


def video(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 2, 1, 6, 6),)


def feature_alpha() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.FeatureAlphaDropout(0.2), nn.Flatten())


LAYERS = (
    Specimen("dropout", lambda: mlp(nn.Dropout(0.4)), features),
    Specimen("functional dropout", FunctionalDropout, features),
    Specimen("dropout that is always on", AlwaysOn, features, eval_differs=True),
    Specimen("native dropout", NativeDropout, features),
    Specimen("one dropout layer called twice", LayerTwice, features),
    Specimen("gaussian layer", lambda: mlp(GaussianDropout(0.3)), features),
    Specimen("uniform layer", lambda: mlp(UniformDropout(0.2)), features),
    Specimen("concrete dropout layer", lambda: mlp(ConcreteDropout(0.3, 0.2)), features),
    Specimen("spatial concrete dropout layer", concrete_maps, image),
    Specimen("alpha dropout", lambda: mlp(nn.AlphaDropout(0.2)), features),
    Specimen("feature-alpha dropout", feature_alpha, image),
    Specimen("spatial dropout, then batch norm", ConvSpatial, image),
    Specimen("spatial dropout of frames", Frames, video),
    Specimen("spatial dropout, batch on axis 2", ChannelsBeforeRows, sequence),
    Specimen("spatial dropout without a batch axis", TableOfChannels, sequence),
    Specimen("dropout, then batch norm", NormAfterDropout, features),
    Specimen("dropout without a batch axis", PositionDropout, sequence),
)
