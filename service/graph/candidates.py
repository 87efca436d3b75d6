"""Places where nothing was random in training, but a request may put noise: inputs, activations, branches, attention.

They are read off the pure graph, after every trained site has its name. It does not know variants or plans. A place
whose rows cannot be told apart is passed over, and so is a value that is the output, that gates another, or that goes
straight into a site of its own.
"""

import torch
from torch import fx

from service.dropout import Kind
from service.graph.layout import LAYOUT
from service.graph.nodes import is_tensor, operator_name, value_of
from service.graph.pools import make_stock
from service.graph.residual import branch_of
from service.graph.scores import SOFTMAX, is_attention
from service.graph.shapes import find_batch
from service.graph.sites import SITE, SITES, Canon, pool_site, site_nodes
from service.graph.weights import is_product

aten = torch.ops.aten
_ACTIVATIONS = frozenset(
    {
        *(aten.relu.default, aten.leaky_relu.default, aten.prelu.default, aten.elu.default, aten.celu.default),
        *(aten.gelu.default, aten.silu.default, aten.mish.default, aten.hardswish.default, aten.hardtanh.default),
        *(aten.relu6.default, aten.softplus.default, aten.tanh.default, aten.sigmoid.default, aten.selu.default),
    }
)
_HANDED_ON = frozenset(  # operators whose result is still the activation, for the layer that comes next
    {
        *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute", "t", "contiguous"),
        *("clone", "slice", "select", "narrow", "getitem", "cat", "pad", "add", "mean", "amax", "activation_site"),
        "pool_site",
        *(
            "max_pool1d",
            "max_pool2d",
            "max_pool3d",
            "avg_pool1d",
            "avg_pool2d",
            "avg_pool3d",
            "max_pool2d_with_indices",
        ),
        *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool2d"),
        *("batch_norm", "layer_norm", "group_norm", "instance_norm", "relu"),
    }
)


def find_candidates(canon: Canon) -> None:
    """Place a site at every input, activation function, attention and branch of a pure program that has none."""
    for node in list(canon.graph.nodes):
        if _is_input(node) or _is_hidden(node) or (is_attention(node) and not _goes_into_sites(node)):
            _place_after(canon, node)
        elif (branch := branch_of(canon, node)) is not None and _tells_rows_apart(canon, branch):
            site = canon.place(node, branch, canon.dims(branch), Kind.ADDITION, None, None, "branch")
            node.replace_input_with(branch, site)
    canon.program.graph.recompile()


def drop_entangled(graph: fx.Graph) -> None:
    """Take out the candidates in which rows turned out not to be told apart, once the layouts are known."""
    for node in site_nodes(graph):
        if node.meta[SITE].site.variant is not None or not _is_entangled(node):
            continue
        if node.target is pool_site:
            make_stock(node)
            continue
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)


def _is_entangled(site: fx.Node) -> bool:
    layout = site.meta[LAYOUT]
    return layout.entangled or any(each.meta[LAYOUT] != layout for each in site.all_input_nodes)


def _is_input(node: fx.Node) -> bool:
    return node.op == "placeholder" and value_of(node).dtype.is_floating_point and not _goes_into_sites(node)


def _is_hidden(node: fx.Node) -> bool:
    return node.target in _ACTIVATIONS and not _goes_into_sites(node) and _feeds_a_layer(node)


def _goes_into_sites(node: fx.Node) -> bool:
    return all(user.target in SITES or user.op == "output" for user in node.users)


def _feeds_a_layer(node: fx.Node) -> bool:
    """Tell whether a value reaches a product with a weight as it is, rather than as a factor of something else."""
    seen, stack = set(), [node]
    while stack:
        for user in stack.pop().users:
            if is_product(user):
                return True
            if user not in seen and operator_name(user) in _HANDED_ON and not _adds_a_number(user):
                seen.add(user)
                stack.append(user)
    return False


def _adds_a_number(node: fx.Node) -> bool:
    return operator_name(node) == "add" and len(node.all_input_nodes) < 2


def _place_after(canon: Canon, node: fx.Node) -> None:
    if not _tells_rows_apart(canon, node):
        return
    before = node.next
    while before.op == "placeholder":
        before = before.next
    site = canon.place(node, node, canon.dims(node), _kind(node), None, None, _what(node), before=before)
    node.replace_all_uses_with(site, delete_user_cb=lambda user: user is not site)


def _kind(node: fx.Node) -> Kind:
    if node.op == "placeholder":
        return Kind.INPUT
    if node.target in SOFTMAX:
        return Kind.ATTENTION
    return Kind.SELU if node.target is aten.selu.default else Kind.HIDDEN


def _what(node: fx.Node) -> str:
    if node.target in SOFTMAX:
        return "attention"
    return "input" if node.op == "placeholder" else operator_name(node)


def _tells_rows_apart(canon: Canon, x: fx.Node) -> bool:
    try:
        return is_tensor(x) and find_batch(canon.dims(x)) is not None
    except ValueError:
        return False
