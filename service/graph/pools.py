"""Pooling layers as sites: our own, whose eval form stands where they are off, and a network's stock max poolings.

It does not know what a plan switches on.
"""

from typing import Any

import torch
from torch import Tensor, fx

from service.dropout import BY_NAME, Kind
from service.dropout.variant import PoolVariant
from service.dropout.windows import Window
from service.errors import CaptureFailed
from service.graph.nodes import float_operand, node_operand, operand, place_of, value_of
from service.graph.shapes import find_batch
from service.graph.sites import SITE, Canon, pool_site

aten = torch.ops.aten
thinnet = torch.ops.thinnet
_STOCK: dict[Any, int] = {  # operator → how many axes it pools
    aten.max_pool1d.default: 1,
    aten.max_pool2d.default: 2,
    aten.max_pool3d.default: 3,
}
_TRAINED: dict[Any, str] = {
    thinnet.max_pooling_dropout.default: "max-pooling-dropout",
    thinnet.masked_max_pooling.default: "masked-max-pooling",
    thinnet.stochastic_pooling.default: "stochastic-pooling",
}
TRAINED_POOLS = tuple(_TRAINED)
_RATE = 6


class Pooling:
    """A pool variant at a site's own window, which acts on one tensor as other variants do."""

    def __init__(self, variant: PoolVariant, site: fx.Node) -> None:
        self.variant = variant
        self.name = variant.name
        self.window = _window(site, len(site.args[1]))  # type: ignore[arg-type] # a list, as we wrote it

    def apply(self, x: Tensor, noise: Tensor) -> Tensor:
        """Pool x [S?, B, *shape] with noise [S?, 1 or B, …]."""
        return self.variant.apply(x, noise, self.window)


def place_pool(canon: Canon, node: fx.Node) -> None:
    """Rewrite a pooling layer of ours to a site that is its eval form where it is off.

    Raises:
        CaptureFailed: Its window is computed or impossible, or rows stand on an axis that it pools.
    """
    name, x = _TRAINED[node.target], node_operand(node)
    variant = BY_NAME[name]
    p = float_operand(node, _RATE) if variant.rated else None
    if node.all_input_nodes != [x]:
        raise CaptureFailed(f"{place_of(node)}: its window is computed; give it as plain numbers")
    try:
        window = _window(node, len(operand(node, 1)))
    except ValueError as error:
        raise CaptureFailed(f"{place_of(node)}: {error}") from None
    if not _leaves_rows_alone(canon, x, window):
        raise CaptureFailed(f"{place_of(node)}: it pools over rows; put the batch on the first axis")
    _place(canon, node, window, (name,) if p is None else (name, p), p)


def find_pools(canon: Canon) -> None:
    """Make a site of each stock max pooling of a pure program that pools no rows; it stays itself where it is off."""
    for node in list(canon.graph.nodes):
        if node.target in _STOCK and _is_plain(node):
            window = _window(node, _STOCK[node.target])
            if _leaves_rows_alone(canon, node_operand(node), window, needs_rows=True):
                _place(canon, node, window)
    canon.program.graph.recompile()


def make_stock(node: fx.Node) -> None:
    """Let a site be the plain max pooling again, and no site."""
    node.target = next(target for target, dims in _STOCK.items() if dims == len(node.args[1]))  # type: ignore[arg-type] # a list, as we wrote it
    node.args = node.args[:_RATE]
    del node.meta[SITE]


def _place(canon: Canon, node: fx.Node, window: Window, trained: tuple[Any, ...] = (), p: float | None = None) -> None:
    x, variant = node_operand(node), trained[0] if trained else None
    site = canon.place(node, x, canon.dims(x), Kind.POOL, variant, p, "max_pool")
    site.target = pool_site
    site.args = (x, *window.sizes, *trained)
    site.meta["val"] = value_of(node)
    canon.replace(node, site)


def _window(node: fx.Node, dims: int) -> Window:
    stride, padding, dilation, ceil = (operand(node, at, default) for at, default in enumerate(((), 0, 1, False), 2))
    return Window.of(dims, operand(node, 1), stride, padding, dilation, ceil)


def _is_plain(node: fx.Node) -> bool:
    """Tell whether a pooling is of floats, by a window of plain numbers, and its shapes are known."""
    known = "val" in node.meta and "val" in node_operand(node).meta and value_of(node).dtype.is_floating_point
    return known and node.all_input_nodes == [node_operand(node)]


def _leaves_rows_alone(canon: Canon, x: fx.Node, window: Window, needs_rows: bool = False) -> bool:
    dims = canon.dims(x)
    try:
        batch = find_batch(dims)
    except ValueError:
        return False
    return not needs_rows if batch is None else batch.axis < len(dims) - window.dims
