"""One Ray for all of these tests: it takes seconds to start."""

import gc
import os
import warnings
from collections.abc import Iterator

import pytest

from service.cluster.joined import ADDRESS, joined

OWN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a Ray of this process, with room for everything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(ADDRESS, raising=False)
        with joined(cpus=2, store_mib=128):
            import ray

            yield ray.get_runtime_context().gcs_address
        for name in OWN:
            os.environ.pop(name, None)
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):  # Ray does not wait for all that it ends
        gc.collect()
