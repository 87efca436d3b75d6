"""Squares dropped from images and their maps: our layers, and DropBlock as torchvision writes it out."""

import torch
from specimen import Specimen, image
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout import Cutout2d, DropBlock2d


def maps(drop: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.ReLU(), drop, nn.Flatten(), nn.Linear(75, 3))


class TorchvisionDropBlock(nn.Module):
    """torchvision.ops.DropBlock2d: its normaliser counts over the whole batch."""

    def __init__(self, p: float = 0.3, block_size: int = 3, inplace: bool = False, eps: float = 1e-6) -> None:
        super().__init__()
        self.p, self.block_size, self.inplace, self.eps = p, block_size, inplace, eps

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        rows, channels, height, width = x.size()
        block = min(self.block_size, width, height)
        inside = height - block + 1, width - block + 1
        gamma = (self.p * height * width) / ((block**2) * (inside[0] * inside[1]))
        noise = torch.empty((rows, channels, *inside), dtype=x.dtype, device=x.device)
        noise.bernoulli_(gamma)
        noise = F.pad(noise, [block // 2] * 4, value=0)
        noise = F.max_pool2d(noise, stride=(1, 1), kernel_size=(block, block), padding=block // 2)
        noise = 1 - noise
        normalize_scale = noise.numel() / (self.eps + noise.sum())
        if self.inplace:
            x.mul_(noise).mul_(normalize_scale)
            return x
        return x * noise * normalize_scale


class CutMiddle(nn.Module):
    """Cutout of maps that are used beside it too, then squares shared by the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.cut, self.head = nn.Conv2d(1, 3, 2), Cutout2d(3), nn.Linear(75, 3)
        self.drop = DropBlock2d(0.3, 2, coupled=True, even=True)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x))
        return self.head(self.drop(self.cut(y) - 0.5 * y).flatten(1))


IMAGES = (
    Specimen("cutout, then drop block", lambda: nn.Sequential(Cutout2d(4), maps(DropBlock2d(0.3, 3))), image),
    Specimen("cutout and coupled drop block inside", CutMiddle, image),
)
