import functools
import warnings

import pytest
import torch
from specimen import Specimen, build
from zoo import ZOO

from service import Predictor


@functools.cache
def captured(specimen: Specimen) -> Predictor:
    """Capture a specimen once for the whole run."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export's own deprecations
        torch.manual_seed(7)
        return Predictor.capture(build(specimen), specimen.inputs(2))


@pytest.fixture(params=ZOO, ids=repr)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    found: Specimen = request.param
    return found


@pytest.fixture
def predictor(specimen: Specimen) -> Predictor:
    return captured(specimen)
