"""Operators called in the form that torch runs fastest; they give what the plain ones give, to rounding.

It does not know plans. On one thread torch's convolution lays out the windows of a single image and takes a narrow
matrix product, whatever its size, and for a value whose axes stand in another order its linear layer takes a product
for each entry of the first axis. Both take longer than the operator that it chooses for other inputs, and many of
oneDNN's products take less time than those that torch takes by default. Its pooling is quick where channels come last
in memory, as oneDNN leaves them, and slow elsewhere but for few values. None of this can be vectorised.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from service.dropout.cell import States
from service.dropout.cell_layers import run_in_eval
from service.dropout.windows import Window, maximum, stock_maximum
from service.graph.nodes import only_user
from service.graph.sites import is_plain_pool

LEAST = 1 << 19  # multiplications of a product from which on oneDNN's call is worth what it costs
_ROUND = (1, 3, 5, 25)  # times a power of two: numbers of rows that come again and again, and are not many
HAS_ONEDNN = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call] # torch's
_PAIR = 2
IMAGES = 4  # axes of a batch of images
_CHANNELS, _MANY_CHANNELS = 8, 32  # measured: channels that pay, where they come last in memory
_FEW, _FEW_APART = 1 << 15, 3 << 12  # the same: values that are soon read, where channels come last and elsewhere
aten = torch.ops.aten


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """Return what `conv2d` returns for x [B, C, H, W]: by oneDNN for one row too."""
    stride, padding, dilation = (pair(each) for each in (stride, padding, dilation))
    if len(x) == 1 and groups == 1 and x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu":
        y: Tensor = aten.mkldnn_convolution.default(x, weight, bias, padding, stride, dilation, groups)
        return y
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `linear` returns for x [..., I]: as one product, by oneDNN where that is worth it."""
    if _suits_onednn_as_it_is(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        return y
    return F.linear(x if x.dim() <= _PAIR else x.contiguous(), weight, bias)


def rectified_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `relu` makes of `linear`: oneDNN rectifies what is still in the cache."""
    if _suits_onednn_as_it_is(x, weight):
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "relu", [], "")
        return y
    return linear(x, weight, bias).relu_()


def _suits_onednn_as_it_is(x: Tensor, weight: Tensor) -> bool:
    return x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and suits_onednn(x, weight)


def suits_onednn(x: Tensor, weight: Tensor) -> bool:
    """Tell whether x [..., I] times a weight [O, I] is a product that oneDNN should take.

    It makes a program for each number of rows and keeps a thousand of them, half a megabyte each, and where requests
    are put together as they come, any number comes. A matrix that lies in another order it would first copy.
    """
    if not HAS_ONEDNN or x.numel() * len(weight) < LEAST or (x.dim() == _PAIR and not x.is_contiguous()):
        return False
    return is_round(x.numel() // x.shape[-1])


def is_round(rows: int) -> bool:
    """Tell whether a number of rows is one of those that come again and again, and are not many."""
    return not rows or rows // (rows & -rows) in _ROUND


def round_factors(rows: int, most: int) -> list[int]:
    """Return what makes a number of rows a round one if it is multiplied by it, in order, as far as it is no more."""
    odd = rows // (rows & -rows)
    factors = (part // odd << power for part in _ROUND if not part % odd for power in range(most.bit_length()))
    return sorted(each for each in factors if each <= most)


def round_parts(rows: int) -> list[int]:
    """Return round numbers that make a number of rows, the largest first; few, for they lie close."""
    parts = []
    while rows:
        parts.append(max(odd << ((rows // odd).bit_length() - 1) for odd in _ROUND if odd <= rows))
        rows -= parts[-1]
    return parts


def lstm(x: Tensor, hx: Sequence[Tensor], params: Sequence[Tensor], *others: Any) -> States:
    """Return what `aten.lstm.input` returns, run on a round number of rows: oneDNN makes a program for each number.

    That takes it some ten times as long as to run it, and half a megabyte.
    """
    return _of_round_rows(x, hx, others[-1], lambda x, hx: aten.lstm.input(x, hx, params, *others))


def layer_in_eval(
    x: Tensor,
    states: Sequence[Tensor],
    parameters: Sequence[Tensor],
    lengths: Tensor | None,
    bidirectional: bool,
    batch_first: bool,
    *others: Any,
) -> States:
    """Return what `run_in_eval` returns, an LSTM run on a round number of rows, as `lstm` does."""
    rest = parameters, lengths, bidirectional, batch_first, *others
    if lengths is not None or len(states) < _PAIR:  # lengths belong to rows; a GRU is none of oneDNN's
        return run_in_eval(x, states, *rest)
    return _of_round_rows(x, states, batch_first, lambda x, hx: run_in_eval(x, hx, *rest))


def _of_round_rows(
    x: Tensor, hx: Sequence[Tensor], batch_first: bool, run: Callable[[Tensor, Sequence[Tensor]], States]
) -> States:
    """Run an LSTM on a round number of rows, and return what it gives for those that there are."""
    axis = 0 if batch_first else 1
    rows = x.shape[axis]
    more = next_round(rows) - rows if HAS_ONEDNN and x.device.type == "cpu" else 0
    if not more:
        return run(x, hx)
    y, h, c = run(_longer(x, axis, more), [_longer(each, 1, more) for each in hx])
    return y.narrow(axis, 0, rows), h.narrow(1, 0, rows), c.narrow(1, 0, rows)


class MaxPool:
    """Plain max pooling of windows of one geometry, by whichever operators pool such a value sooner.

    Args:
        window: The geometry.
    """

    def __init__(self, window: Window) -> None:
        self._window, self.__name__ = window, "max_pool"
        self._skips = all(1 < step < size for step, size in zip(window.stride, window.kernel, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        """Pool x [..., *lengths] to [..., *outputs]."""
        return stock_maximum(x, self._window) if self._suits_stock(x) else maximum(x, self._window)

    def _suits_stock(self, x: Tensor) -> bool:
        """Tell whether torch's own is sooner done: where it reads several channels at once, and windows or few values.

        It reads a window at a time; ours all windows at once, once for each entry of theirs.
        """
        if x.dim() != IMAGES or self._window.dims != _PAIR:
            return False
        if x.shape[1] < _CHANNELS or not x.is_contiguous(memory_format=torch.channels_last):
            return x.numel() < _FEW_APART
        return x.numel() <= _FEW or (self._skips and x.shape[1] >= _MANY_CHANNELS)


def next_round(rows: int) -> int:
    """Return the least round number of rows that is at least as many."""
    above: int = 1 << (rows - 1).bit_length()
    return min(above * part // 32 for part in (20, 24, 25, 32) if above * part >= 32 * rows and not above * part % 32)


def _longer(x: Tensor, axis: int, more: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] = more
    return torch.cat((x, x.new_zeros(shape)), axis)


def pair(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of two axes, one size serving both."""
    return tuple(sizes) * (_PAIR // len(sizes))


def tune(module: fx.GraphModule) -> None:
    """Let a graph that is never vectorised take these operators."""
    if HAS_ONEDNN:
        _replace(module, aten.conv2d.default, convolve)
    _replace(module, aten.linear.default, linear)
    _take_in_rectifiers(module)
    _replace(module, aten.lstm.input, lstm)
    _replace(module, run_in_eval, layer_in_eval)
    pools = [node for node in module.graph.nodes if is_plain_pool(node)]
    for node in pools:
        node.target, node.args = MaxPool(_window(node)), node.args[:1]
    if pools:
        module.recompile()


def _take_in_rectifiers(module: fx.GraphModule) -> None:
    """Let linear layers, and whatever else can, rectify what nothing but a rectifier reads."""
    for node in list(module.graph.nodes):
        rectifier = only_user(node, aten.relu.default, aten.relu_.default)
        if rectifier is None or not (node.target is linear or hasattr(node.target, "rectified")):
            continue
        node.target = rectified_linear if node.target is linear else node.target.rectified()
        rectifier.replace_all_uses_with(node)
        module.graph.erase_node(rectifier)
    module.recompile()


def _window(node: fx.Node) -> Window:
    _, kernel, *geometry = cast("tuple[Any, ...]", node.args)
    return Window.of(len(kernel), kernel, *geometry)


def loosen_views(module: fx.GraphModule) -> None:
    """Let a graph reshape values in any order of memory where it would take a view of some order alone."""
    _replace(module, aten.view.default, aten.reshape.default)


def _replace(module: fx.GraphModule, plain: fx.node.Target, tuned: fx.node.Target) -> None:
    nodes = module.graph.find_nodes(op="call_function", target=plain)
    for node in nodes:
        node.target = tuned
    if nodes:
        module.recompile()
