"""Layers that drop squares of an image, rewritten to sites: ours, and torchvision's DropBlock as it is written out.

torchvision multiplies by m · numel(m) / (ε + Σ m) over a whole batch, so that a row's answer depends on its neighbours.
It is served as `dropblock` that divides by the map's mean of K, which that share comes to in a large batch: rows and
passes stay independent. Any other way of making squares out of noise is refused.
"""

import operator
from typing import Any, NoReturn

import torch
from torch import fx

from service.dropout import DropBlock, Kind
from service.errors import CaptureFailed, UnclaimedRandomness
from service.graph.nodes import float_operand, int_operand, node_operand, operand, operator_name, place_of
from service.graph.shapes import BATCH, BatchAxis, Dims
from service.graph.sites import SITE, Canon

aten = torch.ops.aten
_EPSILON = 1e-6
_POOLS = ("max_pool2d", "max_pool2d_with_indices", "max_pool3d", "max_pool3d_with_indices")
_STILL_NOISE = frozenset(  # operators that turn noise into a mask of squares, or that leave it one
    {
        *("lt", "le", "gt", "ge", "where", "to", "_to_copy", "clone", "neg", "rsub", "add", "add_", "sub", "sub_"),
        *("pad", "constant_pad_nd", "unsqueeze", "squeeze", "view", "reshape", "slice", "select", "bernoulli", *_POOLS),
    }
)


def drop_blocks(canon: Canon, node: fx.Node) -> None:
    """Rewrite drop_block(x, p, block_size, coupled, even, _) to site(x)."""
    p, size = float_operand(node, 1), int_operand(node, 2)
    variant = DropBlock(p, float(size), float(bool(operand(node, 3))), float(bool(operand(node, 4))))
    canon.replace(node, _place(canon, node, node_operand(node), variant))


def cut_out(canon: Canon, node: fx.Node) -> None:
    """Rewrite cutout(x, size, _) to site(x)."""
    own = (("size", float(int_operand(node, 1))),)
    dims = canon.dims(node)
    site = canon.place(node, node_operand(node), dims, Kind.INPUT, "cutout", None, "cutout", parameters=own)
    _check_rows(node, site)
    canon.replace(node, site)


def makes_squares(noise: fx.Node) -> bool:
    """Tell whether noise is pooled before it meets anything that depends on the network's inputs."""
    seen, stack = {noise}, [noise]
    while stack:
        for user in stack.pop().users:
            if user in seen or operator_name(user) not in _STILL_NOISE:
                continue
            if operator_name(user) in _POOLS:
                return True
            seen.add(user)
            stack.append(user)
    return False


def refuse_squares(canon: Canon, node: fx.Node) -> None:
    """Refuse noise that is made into squares in a way that no site stands for.

    Raises:
        UnclaimedRandomness: It is.
    """
    if makes_squares(node):
        _refuse(node)


def replace_blocks(canon: Canon, noise: fx.Node) -> None:
    """Rewrite torchvision's DropBlock, whose seeds are `noise`, to site(x).

    Raises:
        UnclaimedRandomness: It is written in another way.
    """
    pooled = _next(_next(noise, "pad"), "max_pool2d")
    mask = _next(pooled, "rsub")
    if pooled is None or mask is None or tuple(mask.args[1:]) != (1,) or mask.kwargs:
        _refuse(noise)
    product = _product(mask)
    total = _of(list(mask.users), "sum")
    normaliser = _next(_next(_next(total, "add"), "reciprocal"), "mul")
    last = _next(product, "mul", "mul_")
    if product is None or normaliser is None or last is None or last not in normaliser.users:
        _refuse(noise)
    variant = _variant(canon, noise, product, mask)
    if variant is None or not _divides_by_the_share(canon, total, mask, normaliser):
        _refuse(noise)
    inplace = product.target is aten.mul_.Tensor
    canon.replace(last, _place(canon, last, node_operand(product), variant, inplace))
    chain = [product, *_back_from(normaliser, mask), mask, pooled, node_operand(pooled), noise, node_operand(noise)]
    for node in chain:
        if not node.users:
            canon.graph.erase_node(node)


def _place(canon: Canon, node: fx.Node, x: fx.Node, variant: DropBlock, inplace: bool = False) -> fx.Node:
    own = tuple((key, value) for key, value in variant.parameters().items() if key != "p")
    dims = canon.dims(node)
    site = canon.place(node, x, dims, Kind.ACTIVATION, variant.name, variant.p, "dropblock", inplace, own)
    _check_rows(node, site)
    return site


def _check_rows(node: fx.Node, site: fx.Node) -> None:
    if site.meta[SITE].batch != BatchAxis(0):
        raise CaptureFailed(f"{place_of(node)}: its first axis holds more than the rows; give it one image a row")


def _variant(canon: Canon, noise: fx.Node, product: fx.Node, mask: fx.Node) -> DropBlock | None:
    """Return the variant whose seeds and squares these are; None where they are no DropBlock's."""
    pooled = node_operand(mask)
    padded = node_operand(pooled)
    seeds, dims = canon.dims(noise), canon.dims(product)
    block = _side(pooled)
    if block is None or len(dims) != 4 or not _are_fixed(dims[1:]):
        return None
    if not dims == canon.dims(mask) == canon.dims(node_operand(product)):
        return None
    inside = tuple(size - block + 1 for size in dims[2:])
    margins = tuple(operand(padded, 1))
    is_padded = margins == (block // 2,) * 4 and operand(padded, 2, "constant") == "constant" and not operand(padded, 3)
    if seeds != (*dims[:2], *inside) or dims[0] != BATCH or not is_padded:
        return None
    gamma = operand(noise, 1, 0.5)
    height, width = (int(size) for size in dims[2:])
    unit = DropBlock(0.5, block).gamma(height, width) / 0.5
    if not isinstance(gamma, float) or not 0 <= gamma < unit:
        return None
    return DropBlock(round(gamma / unit, 12), float(block), even=1.0)


def _side(pooled: fx.Node) -> int | None:
    """Return the side of pooling's window, where it is square, odd, centred and moves by one."""
    window, stride, padding = (tuple(operand(pooled, index, ())) for index in (1, 2, 3))
    block = window[0] if window else 0
    plain = window == (block, block) and set(stride) == {1} and set(padding) == {block // 2}
    return int(block) if plain and block % 2 and len(pooled.args) < 5 and not pooled.kwargs else None


def _are_fixed(dims: Dims) -> bool:
    return all(not dim.free_symbols for dim in dims)


def _divides_by_the_share(canon: Canon, total: fx.Node | None, mask: fx.Node, normaliser: fx.Node) -> bool:
    """Tell whether a factor is numel(m) / (ε + Σ m)."""
    if total is None or len(total.all_input_nodes) != 1 or len(total.args) != 1:
        return False
    (shifted,) = total.users
    epsilon = operand(shifted, 1)
    counts = [each for each in normaliser.args if each is not operand(normaliser, 0)]
    count = 1
    for size in canon.dims(mask):
        count = count * size
    is_count = len(counts) == 1 and isinstance(counts[0], fx.Node) and _size(canon, counts[0]) == count
    return isinstance(epsilon, float) and 0 <= epsilon <= _EPSILON and is_count


def _size(canon: Canon, node: fx.Node) -> Any:
    return canon.symbols.expression(node.meta["val"]) if node.target in (operator.mul, aten.sym_numel.default) else None


def _product(mask: fx.Node) -> fx.Node | None:
    found = [user for user in mask.users if user.target in (aten.mul.Tensor, aten.mul_.Tensor)]
    if len(found) != 1 or len(mask.users) != 2 or operand(found[0], 1) is not mask:
        return None
    return found[0]


def _of(nodes: list[fx.Node], name: str) -> fx.Node | None:
    found = [node for node in nodes if operator_name(node) == name]
    return found[0] if len(found) == 1 else None


def _next(node: fx.Node | None, *names: str) -> fx.Node | None:
    """Return a node's only user, where it is one of these operators and takes the node first."""
    users = list(node.users) if node is not None else []
    fits = len(users) == 1 and operator_name(users[0]) in names and users[0].all_input_nodes[0] is node
    return users[0] if fits else None


def _back_from(normaliser: fx.Node, mask: fx.Node) -> list[fx.Node]:
    chain, node = [normaliser], node_operand(normaliser)
    while node is not mask:
        chain.append(node)
        node = node_operand(node)
    return chain


def _refuse(node: fx.Node) -> NoReturn:
    raise UnclaimedRandomness(
        f"{place_of(node)} drops squares in a way that no site stands for (a normaliser over the batch would tie rows "
        "together); put thinnet's DropBlock2d in its place, or switch it off in eval mode and capture that"
    )
