"""Every variant obeys every law that binds it, at a small rate and at a half, by being listed."""

import pytest
from bench import SAMPLED, at_rate
from laws import Law, laws_of

from service.dropout import Variant

RATES = (0.1, 0.5)
BOUND = [
    (variant, law, p)
    for variant in SAMPLED
    for law in laws_of(variant)
    for p in (RATES if variant.rated else RATES[:1])
]


@pytest.mark.parametrize(("variant", "law", "p"), BOUND, ids=lambda each: getattr(each, "__name__", str(each)))
def test_every_variant_obeys(variant: type[Variant], law: Law, p: float) -> None:
    law(at_rate(variant, p))
