"""A linear layer of a scaled value that all passes share, as one product over passes, rows and outputs.

Y[s, b, o] = Σ_j n[s, j] h[b, j] W[o, j] + c[o] is noise [S, J] times h ∘ W [J, B · O]: nothing of S · B · J entries is
made. It does not know plans or where noise comes from.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from service.dropout.variant import ActivationVariant
from service.graph.acting import Apply
from service.graph.kernels.counted_sites import take_in_functions
from service.graph.nodes import is_tensor, operand, value_of
from service.graph.shapes import BatchAxis
from service.graph.split import Split

Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_PART_BYTES = 1 << 20  # of h ∘ W: what a product reads again and again should stay in the cache


class ScaledLinear:
    """A site that scales, and the linear layer that is all it feeds.

    Args:
        apply: The site.
        linear: What calls the layer, by value, weight and bias.
        rectifies: Whether the result is rectified, by that too.
    """

    def __init__(self, apply: Apply, linear: Linear = F.linear, rectifies: bool = False) -> None:
        self.apply, self.linear, self.rectifies = apply, linear, rectifies
        self.__name__ = f"linear_of_{apply.__name__}"

    def __call__(self, rows: int, noise: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return weight · (x ∘ noise) + bias for `rows` rows in all [S · B, O], rectified where it is to be."""
        is_folded = noise.dim() > x.dim()
        if is_folded and x.dtype == weight.dtype and is_one_product(rows, noise, x, weight):
            y = one_product(self.apply.factors(noise, x)[:, 0], self.apply.entering(x), weight, bias)
            return y.relu_() if self.rectifies else y
        if is_folded and self.apply.in_parts and rows * x.shape[1] * x.element_size() > _PART_BYTES:
            return part_by_part(rows, self.apply.factors(noise, x), x, weight, bias, self.linear)
        return self.linear(self.apply(rows, noise, x), weight, bias)


def part_by_part(
    rows: int, noise: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, linear: Linear = F.linear
) -> Tensor:
    """Return weight · (x ∘ noise) + bias [S · B, O], with little of x ∘ noise made at once.

    Args:
        rows: S · B.
        noise: Noise [S, 1 or B, J].
        x: The value [B or S · B, J].
        weight: The weight [O, J].
        bias: The bias [O].
        linear: What calls the layer.
    """
    passes, own = noise.shape[0], rows // noise.shape[0]
    fits = max(1, _PART_BYTES // (x.shape[1] * x.element_size()))
    some_passes, some_rows = max(1, fits // own), min(fits, own)
    y = x.new_empty(passes, own, weight.shape[0])
    each = torch.unflatten(x, 0, (-1, own)).expand(passes, -1, -1)
    spread = noise.expand(-1, own, -1)
    for first in range(0, passes, some_passes):
        for row in range(0, own, some_rows):
            part = slice(first, first + some_passes), slice(row, row + some_rows)
            scaled = each[part] * spread[part]
            y[part] = torch.unflatten(linear(scaled.flatten(0, 1), weight, bias), 0, scaled.shape[:2])
    return y.flatten(0, 1)


def one_product(noise: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return weight · (x ∘ noise) + bias [S · B, O] for noise [S, J], x [B, J], weight [O, J] and bias [O]."""
    passes, outputs = noise.shape[0], weight.shape[0]
    if x.shape[0] == 1:
        return F.linear(noise, weight * x, bias)
    y = noise.new_empty(passes, x.shape[0] * outputs)
    part = max(1, _PART_BYTES // (weight.nbytes or 1))
    for first in range(0, x.shape[0], part):
        some = x[first : first + part]
        scaled = (some[:, None] * weight).flatten(0, 1)
        own = y[:, first * outputs : (first + len(some)) * outputs]
        torch.mm(noise, scaled.t(), out=own)
    y = y.view(passes * x.shape[0], outputs)
    return y if bias is None else y.add_(bias)


def fuse_products(split: Split) -> Split:
    """Return a cut whose linear layers take in the site before them, where that site feeds linear layers alone.

    Sites whose noise kernels make take in the activation function before them.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(split.suffix.graph, {}))
    take_in_functions(graph)
    for node in list(graph.nodes):
        if is_scaling(node) and node.users and all(takes(user, node) for user in node.users):
            for user in list(node.users):
                fuse(graph, node, user)
            graph.erase_node(node)
    return replace(split, suffix=fx.GraphModule(split.suffix, graph))


def fuse(graph: fx.Graph, site: fx.Node, linear: fx.Node) -> None:
    """Let a linear layer take in a site that scales, which stays where it is for others."""
    rest = tuple(each for each in (operand(linear, 1), operand(linear, 2)) if each is not None)
    with graph.inserting_before(linear):
        assert isinstance(site.target, Apply)
        fused = graph.call_function(ScaledLinear(site.target), (*site.args, *rest))
    fused.meta = dict(linear.meta)
    linear.replace_all_uses_with(fused)
    graph.erase_node(linear)


def is_scaling(node: fx.Node) -> bool:
    """Tell whether a node is a site that scales, its rows in front."""
    acting = node.target
    if not isinstance(acting, Apply) or acting.batch != BatchAxis(0):
        return False
    return isinstance(acting.variant, ActivationVariant) and acting.variant.scales


def takes(linear: fx.Node, value: fx.Node) -> bool:
    """Tell whether a node is a linear layer of fixed weights that maps a value [B, I] to [B, O]."""
    fixed = [each for each in (operand(linear, 1), operand(linear, 2)) if isinstance(each, fx.Node)]
    is_linear = linear.target is torch.ops.aten.linear.default and operand(linear, 0) is value
    is_flat = is_tensor(linear) and value_of(linear).dim() == 2
    return is_linear and is_flat and all(each.op == "get_attr" for each in fixed)


def is_one_product(rows: int, noise: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Tell whether all passes share x and the noise [S, 1, J], and h ∘ W is clearly smaller than h ∘ n."""
    return noise.shape[1] == 1 and x.shape[0] * noise.shape[0] == rows and 2 * weight.shape[0] <= noise.shape[0]
