"""Over the whole zoo, an integrated last site gives what sampling gives, or is refused by name."""

import re

import pytest
import torch
from specimen import Specimen

from service import Predictor
from service.errors import InvalidPlan, NoActiveSite

SIGMAS = 6
VARIANTS = ("trained", "gaussian", "dropconnect")
REFUSALS = "has no last site to integrate: .*use estimator 'sampled'|fits none of the sites"


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_integrated_last_site_agrees_with_sampling(specimen: Specimen, predictor: Predictor, variant: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(6)
        inputs = specimen.inputs(3)
    asked = {"variant": variant, "quantities": ["standard_error", "variance_error"]}
    try:
        found = predictor.predict(inputs, passes=150, seed=1, estimator="integrated", **asked)  # type: ignore[arg-type]
    except NoActiveSite:
        return
    except InvalidPlan as error:
        if re.search(REFUSALS, str(error)) is None:
            raise
        return
    plain = predictor.predict(inputs, passes=2000, seed=2, **asked)  # type: ignore[arg-type]

    for mine, theirs in zip(found.outputs.values(), plain.outputs.values(), strict=True):
        spread = (mine["standard_error"].square() + theirs["standard_error"].square()).sqrt()
        assert ((mine["mean"] - theirs["mean"]).abs() <= SIGMAS * spread + 1e-5).all()
        errors = [(each["variance_error"] * each["variance"]).nan_to_num() for each in (mine, theirs)]
        spread = (errors[0].square() + errors[1].square()).sqrt()
        assert ((mine["variance"] - theirs["variance"]).abs() <= SIGMAS * spread + 0.05 * theirs["variance"]).all()
