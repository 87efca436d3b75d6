"""Tiny networks, each named for its difficulty, with inputs and a naive way to run one stochastic pass."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import DropConnectLinear, GaussianDropout, UniformDropout

WIDTH = 6


def mlp(drop: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), drop, nn.Linear(8, 3))


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(torch.relu(self.a(x)), 0.4, self.training))


class Attention(nn.Module):
    """Multi-head attention returning its weights: rows and heads share one axis, rows' heads being neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)[0].mean(1)


class HeadMajorAttention(nn.Module):
    """Heads and rows share one axis, heads outermost: a row's entries are strided."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, length = x.shape[0], x.shape[1]
        parts = self.qkv(x).view(rows, length, 3, 2, WIDTH // 2).permute(2, 3, 0, 1, 4)
        q, k, v = (part.reshape(2 * rows, length, WIDTH // 2) for part in parts)
        weights = F.dropout(torch.softmax(q @ k.transpose(1, 2), -1), 0.3, self.training)
        return (weights @ v).view(2, rows, length, WIDTH // 2).mean((0, 2))


class ExplicitAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        rate = 0.3 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True).squeeze(1).mean(1)


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        y = self.encoder(x, src_key_padding_mask=padding)
        return y.masked_fill(padding[..., None], 0).mean(1)


class Recurrent(nn.Module):
    def __init__(self, cell: Any, **options: Any) -> None:
        super().__init__()
        self.cell = cell(WIDTH, 5, num_layers=2, dropout=0.4, **options)
        self.batch_first = options.get("batch_first", False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cell(x if self.batch_first else x.transpose(0, 1))[0]
        return y.mean(1) if self.batch_first else y.mean(0)


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


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = mlp(nn.Dropout(0.4)), nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"left": self.left(y), "right": self.right(y)}


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


class LastToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = nn.Linear(WIDTH, 5), nn.Dropout(0.4)

    def forward(self, x: Tensor, length: Tensor) -> Tensor:
        y = self.drop(self.a(x))
        return y[torch.arange(x.shape[0], device=x.device), length]


class CoupledRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return y - y.mean(0, keepdim=True)


class UnderNoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.body(x)


class UnderAutocastOff(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.body(x)


class UnderAutocast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.body(x).float()


class UnderCond(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.drop = nn.Linear(WIDTH, 3), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return torch.cond(y.sum() > 0, lambda z: self.drop(z), lambda z: z * 2, (y,))


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


class PositionDropout(nn.Module):
    """Dropout on a learned table that has no batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = nn.Parameter(torch.randn(1, 4, WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(x + F.dropout(self.position, 0.4, self.training)).mean(1))


class NativeDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.native_dropout(torch.relu(self.a(x)), 0.4, self.training)[0])


@dataclass(frozen=True)
class Specimen:
    """A network with its difficulty's name."""

    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Tensor, ...]]
    coupled: bool = False
    eval_differs: bool = False  # memory shared in eval only, so that eval is not the limit of small rates

    def __repr__(self) -> str:
        return self.name


def features(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, WIDTH),)


def sequence(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 4, WIDTH),)


def image(rows: int) -> tuple[Tensor, ...]:
    return (torch.randn(rows, 1, 6, 6),)


def padded(rows: int) -> tuple[Tensor, ...]:
    padding = torch.zeros(rows, 4, dtype=torch.bool)
    padding[::2, 3] = True
    return torch.randn(rows, 4, WIDTH), padding


def with_length(rows: int) -> tuple[Tensor, ...]:
    return torch.randn(rows, 4, WIDTH), torch.arange(rows) % 4


def tokens(rows: int) -> tuple[Tensor, ...]:
    return (torch.randint(0, 7, (rows, 4)),)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, dropout=0.2, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(4 * WIDTH, 3))


ZOO = (
    Specimen("dropout", lambda: mlp(nn.Dropout(0.4)), features),
    Specimen("functional dropout", FunctionalDropout, features),
    Specimen("native dropout", NativeDropout, features),
    Specimen("gaussian layer", lambda: mlp(GaussianDropout(0.3)), features),
    Specimen("uniform layer", lambda: mlp(UniformDropout(0.2)), features),
    Specimen("alpha dropout", lambda: mlp(nn.AlphaDropout(0.2)), features),
    Specimen("feature-alpha dropout", lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.FeatureAlphaDropout(0.2), nn.Flatten()), image),
    Specimen("spatial dropout, then batch norm", ConvSpatial, image),
    Specimen("dropout, then batch norm", NormAfterDropout, features),
    Specimen("row-major attention", Attention, sequence),
    Specimen("head-major attention", HeadMajorAttention, sequence),
    Specimen("causal scaled-dot-product attention", ExplicitAttention, sequence),
    Specimen("transformer encoder", encoder, sequence),
    Specimen("padding mask", PaddedEncoder, padded),
    Specimen("lstm between layers", lambda: Recurrent(nn.LSTM, batch_first=True), sequence),
    Specimen("gru between layers, batch on axis 1", lambda: Recurrent(nn.GRU), sequence),
    Specimen("bidirectional rnn", lambda: Recurrent(nn.RNN, bidirectional=True, batch_first=True), sequence),
    Specimen("two heads", TwoHeads, features),
    Specimen("in-place residual", InplaceResidual, features, eval_differs=True),
    Specimen("in-place add after dropout", AddAfterDropout, features, eval_differs=True),
    Specimen("last token by arange", LastToken, with_length),
    Specimen("coupled rows", CoupledRows, features, coupled=True),
    Specimen("no_grad", UnderNoGrad, features),
    Specimen("autocast off", UnderAutocastOff, features),
    Specimen("tied weights", TiedWeights, tokens),
    Specimen("linear twice", LinearTwice, features),
    Specimen("drop path (timm)", lambda: Residual(TimmDropPath()), features),
    Specimen("drop path (Hugging Face)", lambda: Residual(HuggingFaceDropPath()), features),
    Specimen("stochastic depth (batch)", lambda: Residual(TorchvisionStochasticDepth()), features),
    Specimen("dropout without a batch axis", PositionDropout, sequence),
    Specimen("dropconnect layer", lambda: nn.Sequential(DropConnectLinear(WIDTH, 8, p=0.3), nn.ReLU(), nn.Linear(8, 3)), features),
)


def build(specimen: Specimen) -> nn.Module:
    """Make the network with fixed weights, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return specimen.make().eval()


def naive(module: nn.Module) -> nn.Module:
    """Switch a module to what a careful hand-written loop uses: training mode, normalisation layers in eval."""
    module.train()
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._NormBase):
            child.eval()
    return module
