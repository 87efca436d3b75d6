"""Graphs in graphs, several outputs, and rows that are not simply in front."""

from collections import OrderedDict
from typing import Any

import torch
from specimen import WIDTH, Specimen, features, mlp, sequence, with_length
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree


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


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            with torch.no_grad():
                y = self.body(x)
            with torch.no_grad():
                y = y + F.dropout(y, 0.2, self.training)
        return y * 2


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.left, self.right = mlp(nn.Dropout(0.4)), nn.Linear(3, 2), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.body(x)
        return {"left": self.left(y), "right": self.right(y)}


class ModelOutput(OrderedDict[str, Tensor]):
    """An output class of the kind that Hugging Face registers with pytree."""


def _flatten(output: ModelOutput) -> tuple[list[Tensor], list[str]]:
    return list(output.values()), list(output)


def _unflatten(values: Any, names: Any) -> ModelOutput:
    return ModelOutput(zip(names, values, strict=True))


pytree.register_pytree_node(ModelOutput, _flatten, _unflatten, serialized_type_name="tests.zoo.ModelOutput")


class OutputClass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> ModelOutput:
        y = self.body(x)
        return ModelOutput(logits=y, hidden=y * 2)


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


class TwoViews(nn.Module):
    """Each row twice in one batch, its copies half a batch apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.body(torch.cat([x, x.flip(-1)])).chunk(2)
        return (first + second) / 2


class Copies(TwoViews):
    """Each row twice in one batch, its copies side by side."""

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.repeat_interleave(2, 0)).view(-1, 2, 3).mean(1)


class Positions(nn.Module):
    """Rows and positions in one axis, through the layers and back."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(nn.Dropout(0.4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.flatten(0, 1)).unflatten(0, x.shape[:2])


GRAPHS = (
    Specimen("no_grad", UnderNoGrad, features),
    Specimen("autocast off", UnderAutocastOff, features),
    Specimen("no_grad in autocast off", Nested, features),
    Specimen("two heads", TwoHeads, features),
    Specimen("an output class", OutputClass, features),
    Specimen("last token by arange", LastToken, with_length),
    Specimen("two views of each row", TwoViews, features),
    Specimen("copies of each row", Copies, features),
    Specimen("rows and positions in one axis", Positions, sequence),
    Specimen("coupled rows", CoupledRows, features, coupled=True),
)
