"""Masksembles layers rewritten to sites, whose masks must be those that the variant makes again."""

import torch
from torch import fx

from service.dropout import Kind, Masksembles
from service.dropout.masksembles import make_masks
from service.errors import CaptureFailed
from service.graph.nodes import float_operand, node_operand, place_of
from service.graph.shapes import BatchAxis
from service.graph.sites import SITE, Canon


def choose_mask(canon: Canon, node: fx.Node) -> None:
    """Rewrite masksembles(x, masks, scale, _) to site(x)."""
    masks = node_operand(node, 1)
    if masks.op != "get_attr":
        raise CaptureFailed(f"{place_of(node)}: its masks are computed; keep them as a buffer")
    held = getattr(canon.program.graph, str(masks.target))
    variant = Masksembles(len(held), float_operand(node, 2))
    if not torch.equal(held.cpu(), make_masks(variant.fixed_passes, variant.scale, held.shape[1])):
        raise CaptureFailed(
            f"{place_of(node)}: its masks are not those made for n = {variant.n} and scale = {variant.scale}; "
            "a network with masks from elsewhere cannot be served"
        )
    own = tuple(variant.parameters().items())
    dims = canon.dims(node)
    site = canon.place(node, node_operand(node), dims, Kind.ACTIVATION, variant.name, None, "masks", parameters=own)
    if site.meta[SITE].batch != BatchAxis(0):
        raise CaptureFailed(f"{place_of(node)}: its first axis holds more than the rows; give masks one entry a row")
    canon.replace(node, site)
    if not masks.users:
        canon.graph.erase_node(masks)
