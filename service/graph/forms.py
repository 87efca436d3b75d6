"""In what form weights' noise is drawn on a device, for the products that take it; it does not multiply."""

from collections.abc import Callable, Iterable

import torch

from service.dropout import DropConnect, DropConnectSampled, Variant
from service.graph import kernels
from service.graph.bit_masks import PackedDropConnect, packed_form
from service.graph.kernels.counted import CountedDropConnect, CountedSampled, counted_form
from service.graph.weights import WeightSite

Counted = CountedDropConnect | CountedSampled
Formed = PackedDropConnect | Counted
Form = Callable[[WeightSite, Variant], Formed | None]


def form_on(device: torch.device) -> Form | None:
    """Return the form that is fastest on a device; None where the variants' own serves."""
    if kernels.refusal(device) is None:
        return counted_form
    return packed_form if device.type == "cpu" else None


def path_on(device: torch.device) -> str:
    """Say how DropConnect's products run on a device, and why."""
    why = kernels.refusal(device)
    if why is None:
        return "kernels: masks and normals are made in registers, inside the product"
    held = "masks are packed until they are multiplied" if device.type == "cpu" else "plain products stand in"
    return f"{held}; no kernels: {why}"


def plain_products(
    device: torch.device, drawn: Iterable[tuple[str, Variant]], fault: str | None = None
) -> tuple[str, ...]:
    """Say where plain products stand in for kernels, and why; on the CPU none are missed.

    Args:
        device: Where passes run.
        drawn: The sites, and what draws their noise.
        fault: What was wrong with kernels that were tried.
    """
    why = kernels.refusal(device)
    if why is not None and device.type == "cpu":
        return ()
    left = [site for site, variant in drawn if type(variant) in (DropConnect, DropConnectSampled)]
    why = (
        why
        or fault
        or "they serve float32 weights of linear layers, rows on the first axis, whose passes fold into the rows"
    )
    return (f"{', '.join(left)}: plain products stand in for kernels: {why}",) if left else ()
