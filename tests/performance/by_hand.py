"""A network as a careful user makes its passes random with torch alone; it does not know who asks for it."""

import copy
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase

from service.dropout import DropConnectLinear


class NoisyLinear(nn.Module, ABC):
    """A linear layer from [B, in] to [B, out] with new noise in every call, shared by all rows.

    Attributes:
        passes: S where a call runs that many, from [B, in] or [S, B, in] to [S, B, out]; 0 where it runs one.
    """

    def __init__(self, layer: DropConnectLinear) -> None:
        super().__init__()
        self.passes, self.q = 0, 1 - layer.p
        self.weight, self.bias = layer.weight.detach(), layer.bias.detach()

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""


class MaskedLinear(NoisyLinear):
    """DropConnect with one mask of weights and biases for the whole batch."""

    def __init__(self, layer: DropConnectLinear) -> None:
        super().__init__(layer)
        self.weight, self.bias = self.weight / self.q, self.bias / self.q

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self._masked(self.weight), self._masked(self.bias)
        return torch.matmul(x, weight.mT) + bias.unsqueeze(1) if self.passes else F.linear(x, weight, bias)

    def _masked(self, parameter: Tensor) -> Tensor:
        lead = (self.passes,) if self.passes else ()
        return parameter.new_empty(*lead, *parameter.shape).bernoulli_(self.q).mul_(parameter)


class GaussianLinear(NoisyLinear):
    """DropConnect's sampled inference: u ~ N(W x + b, (p / q)(W² x² + b²)), one normal number per unit."""

    def __init__(self, layer: DropConnectLinear) -> None:
        super().__init__(layer)
        odds = layer.p / self.q
        self.squares, self.bias_squares = self.weight.square() * odds, self.bias.square() * odds

    def forward(self, x: Tensor) -> Tensor:
        deviation = F.linear(x.square(), self.squares, self.bias_squares).sqrt_()
        lead = (self.passes, 1) if self.passes else ()
        return F.linear(x, self.weight, self.bias) + deviation * torch.randn(*lead, len(self.bias), device=x.device)


def by_hand(network: nn.Module) -> nn.Module:
    """Return a copy in training mode, with what normalises in eval mode and DropConnect as its paper serves it."""
    network = copy.deepcopy(network).train()
    for name, module in list(network.named_modules()):
        if isinstance(module, _NormBase):
            module.eval()
        elif isinstance(module, DropConnectLinear):
            network.set_submodule(name, GaussianLinear(module) if module.sampled else MaskedLinear(module))
    return network


def fold(network: nn.Module, passes: int) -> bool:
    """Let layers by hand run all passes in one call, and tell whether there are any."""
    layers = [each for each in network.modules() if isinstance(each, NoisyLinear)]
    for layer in layers:
        layer.passes = passes
    return bool(layers)


def has_dropconnect(network: nn.Module) -> bool:
    """Tell whether a network drops weights."""
    return any(isinstance(each, DropConnectLinear) for each in network.modules())
