"""In what form noise is drawn on a device, for what takes it so: weights' products and element-wise sites.

It neither multiplies nor acts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from service.dropout import DropConnect, DropConnectSampled, Variant
from service.graph import kernels
from service.graph.bit_masks import PackedDropConnect, packed_form
from service.graph.kernels.counted import CountedDropConnect, CountedSampled, counted_form
from service.graph.kernels.counted_sites import CountedNoise, counted_site
from service.graph.kernels.laws import ELEMENTWISE
from service.graph.weights import WeightSite

Counted = CountedDropConnect | CountedSampled | CountedNoise
Formed = PackedDropConnect | Counted
_OF_WEIGHTS: frozenset[type[Variant]] = frozenset({DropConnect, DropConnectSampled})


def _nowhere(variant: Variant, shape: Sequence[object], channel_axes: int) -> str:
    return "only weights' masks are packed"


@dataclass(frozen=True)
class Form:
    """A form of noise.

    Attributes:
        variants: Whose noise has it.
        weight: What draws it for a weight; why nothing does where the weight's uses do not take it.
        site: The same for an activation's site, by the row's shape and how many of its axes number channels.
    """

    variants: frozenset[type[Variant]]
    weight: Callable[[WeightSite, Variant], PackedDropConnect | CountedDropConnect | CountedSampled | str]
    site: Callable[[Variant, Sequence[object], int], CountedNoise | str] = _nowhere

    def is_of(self, variants: Iterable[Variant]) -> bool:
        """Tell whether the noise of any of these may have it."""
        return any(type(each) in self.variants for each in variants)


_PACKED = Form(_OF_WEIGHTS, packed_form)
_COUNTED = Form(_OF_WEIGHTS | ELEMENTWISE, counted_form, counted_site)


def form_on(device: torch.device) -> Form | None:
    """Return the form that is fastest on a device; None where the variants' own serves."""
    if kernels.refusal(device) is None:
        return _COUNTED
    return _PACKED if device.type == "cpu" else None


def path_on(device: torch.device) -> tuple[tuple[str, str], ...]:
    """Say how DropConnect's products and element-wise sites run on a device, and why."""
    why = kernels.refusal(device)
    if why is None:
        return (
            ("dropconnect", "kernels: masks and normals are made in registers, inside the product"),
            ("activations", "kernels: noise is made in registers, after the activation function, for all passes"),
            ("thinned products", "kernels: of each pass what it keeps, all in one launch, where that is faster"),
        )
    on_cpu = device.type == "cpu"
    held = "masks are packed until they are multiplied" if on_cpu else "plain products stand in"
    thinned = "one pass after the other, where that is faster" if on_cpu else "none: products run whole"
    return (
        ("dropconnect", f"{held}; no kernels: {why}"),
        ("activations", f"noise is drawn on the CPU, and kept; no kernels: {why}"),
        ("thinned products", f"{thinned}; no kernels: {why}"),
    )


def plain_notes(
    device: torch.device, drawn: Iterable[tuple[str, Variant]], refused: Mapping[str, str]
) -> tuple[str, ...]:
    """Say where plain operators stand in for kernels, and why; on the CPU none are missed.

    Args:
        device: Where passes run.
        drawn: The sites, and what draws their noise.
        refused: Why kernels do not serve a site, where it is not for its variant.
    """
    why = kernels.refusal(device)
    if why is not None and device.type == "cpu":
        return ()
    plain = ((site, variant) for site, variant in drawn if not isinstance(variant, Counted))
    reasons = {site: why or refused.get(site) or kernels.unmade(variant.name) for site, variant in plain}
    return once("plain operators stand in for kernels", reasons)


def once(what: str, reasons: Mapping[str, str]) -> tuple[str, ...]:
    """Say each reason once, with all the sites that it holds for.

    Args:
        what: What is the case there.
        reasons: Why, by site.
    """
    sites: dict[str, list[str]] = {}
    for site, why in reasons.items():
        sites.setdefault(why, []).append(site)
    return tuple(f"{', '.join(names)}: {what}: {why}" for why, names in sites.items())
