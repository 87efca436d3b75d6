"""Every variant obeys every law that binds it, at a small rate and a half, and has its moments at a large one."""

import pytest
from bench import SAMPLED, at_rate
from laws import Law, laws_of, the_mean_is_its_closed_form, the_variance_is_its_closed_form

from service.dropout import Variant

RATES = (0.1, 0.5)
LARGE = 0.7
OF_MOMENTS = (the_mean_is_its_closed_form, the_variance_is_its_closed_form)


def rates(variant: type[Variant], law: Law) -> tuple[float, ...]:
    """Return the rates to judge at; a variant without any is judged once."""
    if not variant.rated:
        return RATES[:1]
    return (*RATES, LARGE) if law in OF_MOMENTS else RATES


BOUND = [  # a variant's laws at one rate in a row: they look at the same passes
    (variant, law, p)
    for variant in SAMPLED
    for p in (*RATES, LARGE)
    for law in laws_of(variant)
    if p in rates(variant, law)
]


@pytest.mark.parametrize(("variant", "law", "p"), BOUND, ids=lambda each: getattr(each, "__name__", str(each)))
def test_every_variant_obeys(variant: type[Variant], law: Law, p: float) -> None:
    law(at_rate(variant, p))
