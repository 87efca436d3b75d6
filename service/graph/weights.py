"""Find every linear weight: one site for each parameter, however many layers use it; it does not know variants."""

from dataclasses import dataclass

import torch
from torch import fx

from service.dropout import Kind
from service.graph.nodes import node_operand, operand, value_of
from service.graph.program import STATE_NAME
from service.graph.shapes import BatchAxis, find_batch
from service.graph.sites import Canon, Site

aten = torch.ops.aten
LINEAR = aten.linear.default
_PRODUCTS = {aten.matmul.default, aten.mm.default, aten.addmm.default}
_TRANSPOSES = {aten.t.default, aten.transpose.int, aten.permute.default, aten.numpy_T.default}


@dataclass(frozen=True)
class Use:
    """One product with a weight, and the bias added in it."""

    node: fx.Node
    bias: fx.Node | None


@dataclass(frozen=True)
class WeightSite:
    """A weight, everything that uses it, and how it was trained.

    Attributes:
        site: The site, named after the parameter.
        parameter: The parameter's node.
        uses: The products that it stands in.
        columns: By a bias's name, its column of the noise.
        rows_and_features: Whether its one use is on [B, in], so that sampled inference may serve it.
    """

    site: Site
    parameter: fx.Node
    uses: tuple[Use, ...]
    columns: dict[str, int]
    rows_and_features: bool


def find_weights(canon: Canon) -> tuple[WeightSite, ...]:
    """Return the weight sites of a pure graph, in the order of their first use."""
    found: dict[fx.Node, list[Use]] = {}
    for node in canon.graph.nodes:
        parameter = _weight_of(node)
        if parameter is not None:
            found.setdefault(parameter, []).append(Use(node, _bias_of(node)))
    return tuple(_weight_site(canon, parameter, tuple(uses)) for parameter, uses in found.items())


def _weight_of(node: fx.Node) -> fx.Node | None:
    """Return the parameter that a product multiplies by, if it is one."""
    if node.target is LINEAR:
        factors = [operand(node, 1)]
    elif node.target in _PRODUCTS:
        factors = [_untransposed(each) for each in node.all_input_nodes]
    else:
        return None
    return next((each for each in factors if isinstance(each, fx.Node) and _is_matrix_parameter(each)), None)


def _untransposed(node: fx.Node) -> fx.Node:
    return node_operand(node) if node.target in _TRANSPOSES else node


def _is_matrix_parameter(node: fx.Node) -> bool:
    if node.op != "get_attr" or STATE_NAME not in node.meta:
        return False
    value = value_of(node)
    return value.dim() == 2 and value.dtype.is_floating_point


def _bias_of(product: fx.Node) -> fx.Node | None:
    bias = operand(product, 2) if product.target is LINEAR else None
    return bias if isinstance(bias, fx.Node) else None


def _weight_site(canon: Canon, parameter: fx.Node, uses: tuple[Use, ...]) -> WeightSite:
    out, columns_in = (int(size) for size in value_of(parameter).shape)
    biases = [use.bias.meta[STATE_NAME] for use in uses if use.bias is not None and STATE_NAME in use.bias.meta]
    columns = {name: columns_in + index for index, name in enumerate(dict.fromkeys(biases))}
    variant, p = canon.trained.get(parameter, (None, None))
    site = Site(parameter.meta[STATE_NAME], Kind.WEIGHT, (out, columns_in + len(columns)), variant, p)
    return WeightSite(site, parameter, uses, columns, _serves_rows_and_features(canon, parameter, uses))


def _serves_rows_and_features(canon: Canon, parameter: fx.Node, uses: tuple[Use, ...]) -> bool:
    if len(uses) != 1 or uses[0].node.target is not LINEAR or len(parameter.users) != 1:
        return False
    x = node_operand(uses[0].node)
    if "val" not in x.meta:
        return False
    dims = canon.dims(x)
    try:
        batch = find_batch(dims)
    except ValueError:
        return False
    return len(dims) == 2 and batch == BatchAxis(0)
