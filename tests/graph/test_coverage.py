"""Every variant is reached as trained, by request, or both, and bound by laws; `-s` prints the table."""

import pytest
from laws import laws_of
from specimen import captured
from stock import FAMILIES, by_request
from zoo import ZOO

from service.dropout import VARIANTS, Fast, Kind, Masksembles, SparseVariationalJoint, Variant

WITHOUT_A_LAYER = (Fast, SparseVariationalJoint)
"""What stands in for the training of another layer, and so has none of its own."""
BY_OTHER_LAWS = (Masksembles,)
"""What draws nothing and has passes of its own: tests/dropout/test_masksembles.py holds its laws and its layers."""

OF_A_LAYER = {Kind.GATED, Kind.BRANCHES, Kind.SPARSE_WEIGHT}
"""Sites that only a layer makes, which a request cannot put where there is none."""


def trained_in(variant: type[Variant]) -> list[str]:
    """Return the specimens that were trained with a variant."""
    return [
        specimen.name
        for specimen in ZOO
        if any(site.variant == variant.name and site.is_trained for site in captured(specimen).sites)
    ]


def requested_in(variant: type[Variant]) -> list[str]:
    """Return the stock networks, or else the specimens not trained with it, where a request can put a variant."""
    families = [family for family in FAMILIES if any(variant.name in fits for fits in by_request(family).values())]
    return families or [
        specimen.name
        for specimen in ZOO
        if any(
            site.variant != variant.name and variant.name in captured(specimen).fitting(site.name)
            for site in captured(specimen).sites
        )
    ]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_a_variant_is_served_as_trained_by_request_and_under_laws(variant: type[Variant]) -> None:
    trained, requested = trained_in(variant), requested_in(variant)
    laws = "laws of fixed masks" if variant in BY_OTHER_LAWS else f"{len(laws_of(variant))} laws"
    as_trained = "its layers" if variant in BY_OTHER_LAWS else _first(trained)
    print(f"| {variant.name} | {as_trained} | {_first(requested)} | {laws} |")

    assert bool(trained) is (variant not in WITHOUT_A_LAYER + BY_OTHER_LAWS)
    assert variant in BY_OTHER_LAWS or laws_of(variant)
    assert bool(requested) is (variant in WITHOUT_A_LAYER or not variant.kinds <= OF_A_LAYER)


def _first(names: list[str], most: int = 3) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest if names else "no"
