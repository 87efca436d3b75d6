"""A convolution of a value that all passes share and whose channels a site scales: each channel is convolved once.

y[s] = Σ_c n[s, c] (w[:, c] ∗ x[c]) + b is noise [S, C] times what each channel gives alone [C, H' · W' · O]. A pass
then adds up C values for an element of its result, where to convolve anew adds C for each of the weight's taps. It does
not know plans or where noise comes from.
"""

import torch
from torch import Tensor, fx

from service.dropout.variant import ActivationVariant
from service.graph.acting import Apply
from service.graph.convolution import FixedConvolution
from service.graph.nodes import node_operand
from service.graph.products import is_scaling

_PART_BYTES = 1 << 20  # of what channels give alone: it is made and taken up within the cache
_SLOWER = 4  # measured: how many times as long as in a convolution a tap's product takes where a channel is alone
_CLEARLY = 0.5  # the part of all products that may be left
MANY = 32  # passes, for which what channels give alone is little beside what passes make of it


class ScaledConvolution:
    """A site that scales channels, and the convolution that is all it feeds.

    Args:
        apply: The site.
        convolve: The convolution, of one group.
    """

    def __init__(self, apply: Apply, convolve: FixedConvolution) -> None:
        self.apply, self.convolve = apply, convolve
        self.__name__ = f"convolution_of_{apply.__name__}"

    def __call__(self, rows: int, noise: Tensor, x: Tensor) -> Tensor:
        """Return weight ∗ (x ∘ noise) + bias for `rows` images in all [S · B, O, H', W']."""
        if noise.dim() > x.dim() and self._pays(rows, noise, x):
            factors = self.apply.factors(noise, x).flatten(1)
            return self._by_channel(factors, self.apply.entering(x))
        return self.convolve(self.apply(rows, noise, x))

    def _pays(self, rows: int, noise: Tensor, x: Tensor) -> bool:
        """Tell whether all passes share x [B, C, H, W] and the noise [S, 1, C, 1, 1], and are many."""
        passes = noise.shape[0]
        is_shared = len(x) * passes == rows and noise[0].numel() == x.shape[1] and x.dtype == torch.float32
        return is_shared and part_left(passes, self.convolve.taps.shape[1]) < _CLEARLY

    def _by_channel(self, noise: Tensor, x: Tensor) -> Tensor:
        """Return the result for noise [S, C] and x [B, C, H, W]."""
        height, width = self.convolve.size_of(x)
        if self.convolve.bias is not None:
            noise = torch.cat((noise, noise.new_ones(len(noise), 1)), 1)
        y = x.new_empty(len(noise), len(x), height, width, self.convolve.taps.shape[-1])
        for image, own in zip(torch.split(x, 1), y.flatten(2).unbind(1), strict=True):
            self._add_up(noise, self.convolve.windows(image), own)
        y = y.flatten(0, 1).permute(0, 3, 1, 2)  # channels come last in memory
        return y.relu_() if self.convolve.rectifies else y

    def _add_up(self, noise: Tensor, windows: Tensor, y: Tensor) -> None:
        """Write y [S, L · O] for one image's windows [C, taps, L], some of its positions after the other."""
        taps, bias = self.convolve.taps, self.convolve.bias
        channels, _, outputs = taps.shape
        step = max(1, _PART_BYTES // (channels * outputs * taps.element_size()))
        for some, own in zip(torch.split(windows, step, 2), torch.split(y, step * outputs, 1), strict=True):
            alone = taps.new_empty(noise.shape[1], some.shape[2], outputs)
            torch.bmm(some.mT, taps, out=alone[:channels])
            if bias is not None:
                alone[channels] = bias
            torch.mm(noise, alone.flatten(1), out=own)


def part_left(passes: int, taps: int) -> float:
    """Return what takes as long as the products that are left, as a part of those of convolutions pass by pass."""
    return (passes + _SLOWER * taps) / (passes * taps)


def scale_by_channel(module: fx.GraphModule) -> fx.GraphModule:
    """Let the convolutions of a suffix, of fixed weights, take in the sites before them that scale a trunk's value."""
    found = [node for node in module.graph.nodes if _takes_its_site(node)]
    for node in found:
        site = node_operand(node)
        assert isinstance(site.target, Apply)
        node.target, node.args = ScaledConvolution(site.target, node.target), site.args
        module.graph.erase_node(site)
    if found:
        module.recompile()
    return module


def _takes_its_site(node: fx.Node) -> bool:
    if not isinstance(node.target, FixedConvolution) or node.target.groups != 1 or not shares_value(node_operand(node)):
        return False
    return part_left(MANY, node.target.taps.shape[1]) < _CLEARLY  # else it would never pay


def shares_value(site: fx.Node) -> bool:
    """Tell whether a node of a suffix is a site that scales the channels of a trunk's value, for one reader."""
    if not is_scaling(site) or not isinstance(site.target, Apply):
        return False
    scaling = site.target.variant
    by_channel = isinstance(scaling, ActivationVariant) and scaling.per_channel
    return by_channel and len(site.users) == 1 and node_operand(site, 2).op == "placeholder"
