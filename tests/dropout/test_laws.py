"""Every variant obeys every law that binds it, at a small rate and at a half, by being listed."""

import pytest
from laws import Law, laws_of

from service.dropout import VARIANTS, Variant

RATES = (0.1, 0.5)
BOUND = [(variant, law) for variant in VARIANTS for law in laws_of(variant)]


@pytest.mark.parametrize("p", RATES)
@pytest.mark.parametrize(("variant", "law"), BOUND, ids=lambda each: each.__name__)
def test_every_variant_obeys(variant: type[Variant], law: Law, p: float) -> None:
    law(variant(p=p))
