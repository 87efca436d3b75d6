"""Every fault is caught, in every variant that can have it, by the law that is there for it."""

import pytest
from bench import SAMPLED, at_rate
from laws import LAWS, laws_of
from mutants import FAULTS, Mutant, mutants

from service.dropout import Variant

CASES = [
    (mutant, p)
    for variant in SAMPLED
    for mutant in mutants(variant)
    for p in (mutant.rates if variant.rated else mutant.rates[:1])
]


@pytest.mark.parametrize(("mutant", "p"), CASES, ids=repr)
def test_a_faulty_variant_breaks_the_law_against_its_fault(mutant: Mutant, p: float) -> None:
    with pytest.raises(AssertionError, match=f"^{mutant.says}"):
        mutant.law(at_rate(mutant.type, p))


@pytest.mark.parametrize("variant", SAMPLED, ids=lambda variant: variant.name)
def test_every_law_that_binds_a_variant_can_fail_for_it(variant: type[Variant]) -> None:
    caught_by = {mutant.law for mutant in mutants(variant)}

    assert [law.__name__ for law in laws_of(variant) if law not in caught_by] == []


def test_every_fault_fits_some_variant_and_every_law_catches_some_fault() -> None:
    assert all(any(list(fault(variant)) for variant in SAMPLED) for fault in FAULTS)
    assert {mutant.law for mutant, _ in CASES} == set(LAWS)
