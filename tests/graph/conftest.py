import pytest
from specimen import Specimen, captured
from zoo import ZOO

from service import Predictor


@pytest.fixture(params=ZOO, ids=repr)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    found: Specimen = request.param
    return found


@pytest.fixture
def predictor(specimen: Specimen) -> Predictor:
    return captured(specimen)
