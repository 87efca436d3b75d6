from collections.abc import Iterator

import pytest
from specimen import Specimen, captured
from zoo import ZOO

from service import Predictor

PLANS_KEPT = 1000  # every plan of a specimen is compiled once for all the laws


@pytest.fixture(params=ZOO, ids=repr, scope="module")
def specimen(request: pytest.FixtureRequest) -> Specimen:
    found: Specimen = request.param
    return found


@pytest.fixture(scope="module")
def predictor(specimen: Specimen) -> Iterator[Predictor]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.prepared._PLANS_KEPT", PLANS_KEPT)  # read when a predictor is made
        found = captured(specimen)
    yield found
    found._preparation.clear()
