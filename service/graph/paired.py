"""Our layers that act on two tensors, rewritten to sites that are the layer's eval form where they are off.

It does not know variants' mathematics or what a plan switches on.
"""

from torch import fx

from service.dropout import ShakeShake, Standout
from service.dropout.variant import Kind, PairedVariant
from service.errors import CaptureFailed
from service.graph.nodes import float_operand, node_operand, place_of
from service.graph.sites import Canon, paired_site


def gate(canon: Canon, node: fx.Node) -> None:
    """Rewrite standout(u, a, α, β, _) to a site on both."""
    _replace(canon, node, Standout(float_operand(node, 2), float_operand(node, 3)), Kind.GATED)


def mix_branches(canon: Canon, node: fx.Node) -> None:
    """Rewrite shake_shake(f₁, f₂, _) to a site on both."""
    _replace(canon, node, ShakeShake(), Kind.BRANCHES)


def _replace(canon: Canon, node: fx.Node, variant: PairedVariant, kind: Kind) -> None:
    first, second = node_operand(node), node_operand(node, 1)
    dims = canon.dims(node)
    if not canon.dims(first) == canon.dims(second) == dims:
        raise CaptureFailed(f"{place_of(node)}: its two tensors differ in shape; give both the shape of the result")
    own = variant.parameters()
    what = variant.name.replace("-", "_")
    site = canon.place(node, first, dims, kind, variant.name, None, what, parameters=tuple(own.items()))
    site.target = paired_site
    site.args = (first, second, variant.name, *own.values())
    canon.replace(node, site)
