"""The convolution to train with DropConnect, and its operator; the variant stands beside the linear layer."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from service.dropout.dropconnect import DropConnect
from service.dropout.operator import register
from service.errors import InvalidPlan


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: float,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    train: bool,
) -> Tensor:
    if not train:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    rows = len(x)
    keep = torch.rand(rows, *weight.shape, device=x.device) >= p
    own = (weight * keep / (1 - p)).flatten(0, 1)
    offsets = None
    if bias is not None:
        offsets = (bias * (torch.rand(rows, len(bias), device=x.device) >= p) / (1 - p)).flatten()
    together = F.conv2d(x.reshape(1, -1, *x.shape[2:]), own, offsets, stride, padding, dilation, groups * rows)
    return together.reshape(rows, -1, *together.shape[2:])


dropconnect_conv2d = register(
    "dropconnect_conv2d(Tensor x, Tensor weight, Tensor? bias, float p, int[] stride, int[] padding, int[] dilation, "
    "int groups, bool train) -> Tensor",
    _forward,
)


class DropConnectConv2d(nn.Conv2d):
    """Train a convolution with a weight mask of its own for each example; the plain layer in eval mode.

    Wan et al. 2013 mask fully connected layers; Mobiny et al. 2019 (MC-DropConnect) mask convolutions too.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: The kernel's height and width.
        stride: Its steps.
        padding: Zeros around the input, in numbers.
        dilation: Steps between the kernel's elements.
        groups: How many groups of channels.
        bias: Whether there is a bias; it is masked too.
        p: The probability of dropping a weight, 0 ≤ p < 1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        p: float = DropConnect.p,
    ) -> None:
        if isinstance(padding, str):
            raise InvalidPlan(f"DropConnectConv2d: padding = {padding!r} is a word; give it as numbers")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.p = DropConnect(p).p
        self.zeros = (padding, padding) if isinstance(padding, int) else padding

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, in, H, W] to u [B, out, H′, W′]."""
        u: Tensor = dropconnect_conv2d(
            x, self.weight, self.bias, self.p, self.stride, self.zeros, self.dilation, self.groups, self.training
        )
        return u
