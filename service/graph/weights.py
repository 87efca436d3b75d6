"""Find every linear or convolution weight and every embedding table; it does not know variants.

There is one site for each parameter, however many layers use it.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import fx

from service.dropout import BY_NAME, Kind
from service.dropout.sparse_variational import without_noisy_weights
from service.dropout.targeted_weights import pruned
from service.errors import CaptureFailed
from service.graph.nodes import node_operand, operand, value_of
from service.graph.program import STATE_NAME
from service.graph.recurrent import RECURRENT, recurrent_weights
from service.graph.shapes import BatchAxis, find_batch
from service.graph.sites import Canon, Site, Trained

aten = torch.ops.aten
CONVOLUTIONS = {
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
    aten.convolution.default,
}
LINEAR = aten.linear.default
_PRODUCTS = {aten.matmul.default, aten.mm.default, aten.addmm.default}
_PRUNINGS = (pruned, without_noisy_weights)
_WEIGHTED = {*RECURRENT, aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}
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
        oriented: Whether every use is a linear layer's or a convolution's, so that its first axis is the outputs.
        log_variance: The log variance of each weight that its layer learned, where it did.
    """

    site: Site
    parameter: fx.Node
    uses: tuple[Use, ...]
    columns: dict[str, int]
    rows_and_features: bool
    oriented: bool = True
    log_variance: fx.Node | None = None


def find_weights(canon: Canon) -> tuple[WeightSite, ...]:
    """Return the weight sites of a pure graph, in the order of their first use."""
    found: dict[fx.Node, list[Use]] = {}
    for node in canon.graph.nodes:
        parameter = _weight_of(node)
        if parameter is not None:
            found.setdefault(parameter, []).append(Use(node, _bias_of(node)))
    weights = tuple(_weight_site(canon, parameter, tuple(uses)) for parameter, uses in found.items())
    taken = frozenset(site.site.name for site in weights)
    return weights + find_tables(canon, taken) + find_recurrent_weights(canon, taken)


def is_product(node: fx.Node) -> bool:
    """Tell whether a node is a layer with weights of its own."""
    return node.target in _WEIGHTED or _weight_of(node) is not None


def _weight_of(node: fx.Node) -> fx.Node | None:
    """Return the parameter that a product multiplies by, if it is one."""
    if node.target in CONVOLUTIONS:
        weight = operand(node, 1)
        is_own = isinstance(weight, fx.Node) and _is_parameter(weight) and not _is_transposed(node)
        return weight if is_own else None
    if node.target is LINEAR:
        factors = [_unpruned(operand(node, 1))]
    elif node.target in _PRODUCTS:
        factors = [_untransposed(each) for each in node.all_input_nodes]
    else:
        return None
    return next((each for each in factors if isinstance(each, fx.Node) and _is_matrix_parameter(each)), None)


def _untransposed(node: fx.Node) -> fx.Node:
    return node_operand(node) if node.target in _TRANSPOSES else node


def _unpruned(factor: object) -> object:
    return node_operand(factor) if isinstance(factor, fx.Node) and factor.target in _PRUNINGS else factor


def readers(parameter: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Return every use of a parameter, with what it takes: the parameter, or what is left of it pruned."""
    direct = [(parameter, user) for user in parameter.users if user.target not in _PRUNINGS]
    return direct + [(cut, user) for cut in parameter.users if cut.target in _PRUNINGS for user in cut.users]


def _is_transposed(convolution: fx.Node) -> bool:
    return convolution.target is aten.convolution.default and bool(operand(convolution, 6))


def _is_parameter(node: fx.Node) -> bool:
    return node.op == "get_attr" and STATE_NAME in node.meta and value_of(node).dtype.is_floating_point


def _is_matrix_parameter(node: fx.Node) -> bool:
    return _is_parameter(node) and value_of(node).dim() == 2


def _bias_of(product: fx.Node) -> fx.Node | None:
    bias = operand(product, 2) if product.target is LINEAR or product.target in CONVOLUTIONS else None
    return bias if isinstance(bias, fx.Node) else None


def _weight_site(canon: Canon, parameter: fx.Node, uses: tuple[Use, ...]) -> WeightSite:
    out, *inner = (int(size) for size in value_of(parameter).shape)
    columns_in = prod(inner)
    biases = [use.bias.meta[STATE_NAME] for use in uses if use.bias is not None and STATE_NAME in use.bias.meta]
    columns = {name: columns_in + index for index, name in enumerate(dict.fromkeys(biases))}
    log_variance = _log_variance(parameter)
    of_product = Kind.CONV if uses[0].node.target in CONVOLUTIONS else Kind.WEIGHT
    kind = of_product if log_variance is None else Kind.SPARSE_WEIGHT
    variant, p, others = how_trained(canon, parameter, kind)
    site = Site(parameter.meta[STATE_NAME], kind, (out, columns_in + len(columns)), variant, p, others)
    oriented = all(user.target is LINEAR or user.target in CONVOLUTIONS for _, user in readers(parameter))
    plain = _serves_rows_and_features(canon, parameter, uses)
    return WeightSite(site, parameter, uses, columns, plain, oriented, log_variance)


def _log_variance(parameter: fx.Node) -> fx.Node | None:
    """Return the log variance that a weight's layer learned; where several layers have the weight, it is one.

    Raises:
        CaptureFailed: It is several.
    """
    noisy = [user for user in parameter.users if user.target is without_noisy_weights]
    if len({node_operand(user, 1) for user in noisy}) > 1:
        raise CaptureFailed(f"{parameter.meta[STATE_NAME]}: its layers learned different variances; share those too")
    return node_operand(noisy[0], 1) if noisy else None


def find_tables(canon: Canon, taken: frozenset[str]) -> tuple[WeightSite, ...]:
    """Return the embedding tables whose indices come from an input; one that is a weight too has a name of its own."""
    found: dict[fx.Node, list[Use]] = {}
    for node in canon.graph.find_nodes(op="call_function", target=aten.embedding.default):
        table, indices = node_operand(node), node_operand(node, 1)
        if _is_matrix_parameter(table) and _reads_an_input(indices):
            found.setdefault(table, []).append(Use(node, None))
    sites = []
    for table, uses in found.items():
        name, shape = table.meta[STATE_NAME], tuple(int(size) for size in value_of(table).shape)
        variant, p, others = how_trained(canon, table, Kind.EMBEDDING)
        site = Site(f"{name}#words" if name in taken else name, Kind.EMBEDDING, shape, variant, p, others)
        sites.append(WeightSite(site, table, tuple(uses), {}, False))
    return tuple(sites)


def find_recurrent_weights(canon: Canon, taken: frozenset[str]) -> tuple[WeightSite, ...]:
    """Return the hidden-to-hidden weights of torch's recurrent layers; one mask serves all steps."""
    found: dict[fx.Node, list[Use]] = {}
    for node in canon.graph.nodes:
        for weight in recurrent_weights(node) if node.target in RECURRENT else ():
            if _is_matrix_parameter(weight):
                found.setdefault(weight, []).append(Use(node, None))
    sites = []
    for weight, uses in found.items():
        name, shape = weight.meta[STATE_NAME], tuple(int(size) for size in value_of(weight).shape)
        how = how_trained(canon, weight, Kind.RECURRENT_WEIGHT)
        site = Site(f"{name}#recurrent" if name in taken else name, Kind.RECURRENT_WEIGHT, shape, *how)
        sites.append(WeightSite(site, weight, tuple(uses), {}, False))
    return tuple(sites)


def how_trained(canon: Canon, parameter: fx.Node, kind: Kind) -> Trained | tuple[None, None, tuple[()]]:
    """Return variant, rate and other parameters that a weight was trained with as a site of this kind."""
    how = canon.trained.get(parameter)
    fits = how is not None and kind in BY_NAME[how[0]].kinds
    return how if how is not None and fits else (None, None, ())


def _reads_an_input(node: fx.Node) -> bool:
    """Tell whether values of an input, and not its size alone, reach a node."""
    seen, stack = set(), [node]
    while stack:
        each = stack.pop()
        if each.op == "placeholder":
            return True
        if each not in seen and not _is_of_sizes_alone(each):
            stack += each.all_input_nodes
        seen.add(each)
    return False


def _is_of_sizes_alone(node: fx.Node) -> bool:
    name = str(node.target)
    return node.target is aten.sym_size.int or "_like." in name or name.startswith("aten.new_")


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
