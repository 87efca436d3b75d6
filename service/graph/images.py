"""Which values are images, channels in front: those that a two-dimensional convolution or pooling makes or takes.

Of a value's shape alone that cannot be told: rows, height, width and features look the same. It does not know variants.
"""

from torch import fx

from service.errors import InvalidPlan
from service.graph.nodes import is_tensor, operator_name, value_of
from service.graph.shapes import BatchAxis, Dims, expression
from service.graph.sites import SITE

_OF_IMAGES = frozenset(
    {
        *("conv2d", "conv_transpose2d", "max_pool2d", "max_pool2d_with_indices", "avg_pool2d", "adaptive_avg_pool2d"),
        *(
            "adaptive_max_pool2d",
            "pool_site",
            "batch_norm",
            "pixel_shuffle",
            "upsample_nearest2d",
            "upsample_bilinear2d",
        ),
    }
)
_REORDERING = frozenset(
    {"permute", "transpose", "t", "movedim", "view", "reshape", "flatten", "unflatten", "linear", "matmul", "bmm"}
)


def check_image(site: fx.Node, variant: str) -> None:
    """Check that a site's rows are images [C, H, W].

    Raises:
        InvalidPlan: They are not.
    """
    located = site.meta[SITE]
    if located.site.variant == variant:
        return  # trained there, and checked where it was found
    if len(located.dims) != 4 or located.batch != BatchAxis(0) or not _is_image(site, located.dims[1:]):
        raise InvalidPlan(
            f"site {located.site.name!r}: {variant!r} takes images of channels, height and width, and no convolution "
            "or pooling takes or makes this value as one; switch the site off"
        )


def _is_image(node: fx.Node, shape: Dims) -> bool:
    """Look through what keeps the shape, in both directions, for an operation on images."""
    seen, stack = {node}, [node]
    while stack:
        each = stack.pop()
        if operator_name(each) in _OF_IMAGES:
            return True
        if each is not node and operator_name(each) in _REORDERING:
            continue
        for near in (*each.all_input_nodes, *each.users):
            if near not in seen and (_has_shape(near, shape) or operator_name(near) in _OF_IMAGES):
                seen.add(near)
                stack.append(near)
    return False


def _has_shape(node: fx.Node, shape: Dims) -> bool:
    if not is_tensor(node) or value_of(node).dim() != 4:
        return False
    return tuple(expression(size) for size in value_of(node).shape[1:]) == shape
