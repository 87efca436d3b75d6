"""A Ray to work in: the one that RAY_ADDRESS names, else one of this machine's own; it does not know what runs there.

Ray lets whoever reaches its ports run code. One that is started here listens on the loopback only, asks for a token
that this process makes, tells nobody of its use, and ends with this process, however that ends.
"""

import importlib
import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from service.errors import NotReady
from service.threads import usable_cpus

ADDRESS = "RAY_ADDRESS"
_MIB = 1 << 20
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0", "RAY_COLOR_PREFIX": "0"}
_OWN = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the second: listen on the loopback only


def is_own() -> bool:
    """Tell whether a Ray would be started here."""
    return not os.environ.get(ADDRESS)


def need_ray() -> None:
    """Prepare to import ray.

    Raises:
        NotReady: It is not installed.
    """
    os.environ |= _QUIET
    if importlib.util.find_spec("ray") is None:
        raise NotReady("engine ray needs Ray, which is not installed; pip install 'thinnet[ray]'")


@contextmanager
def joined(cpus: float = 0, store_mib: int = 256) -> Iterator[bool]:
    """Join a cluster or start a Ray here, and leave or end it afterwards; gives whether it was started here.

    Args:
        cpus: How many processors a Ray of this machine deals out, at least; those that are usable where that is more.
        store_mib: The most memory of its object store.

    Raises:
        NotReady: Ray is not installed, or does not answer.
    """
    need_ray()
    if not is_own():
        with _connected():
            yield False
        return
    os.environ |= _OWN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    scratch = Path(mkdtemp(prefix="thinnet-ray-"))
    try:
        with _connected(
            num_cpus=max(usable_cpus(), int(-(-cpus // 1))),
            object_store_memory=store_mib * _MIB,
            include_dashboard=False,
            _temp_dir=str(scratch),
        ):
            yield True
    finally:
        rmtree(scratch, ignore_errors=True)


@contextmanager
def _connected(**options: object) -> Iterator[None]:
    ray = importlib.import_module("ray")
    try:
        ray.init(namespace="thinnet", logging_level="warning", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = os.environ.get(ADDRESS)
        at = f"the Ray at {ADDRESS}={where} does not answer" if where else "no Ray can be started here"
        raise NotReady(f"{at}: {_first_line(error)}; check the address, or leave {ADDRESS} out") from None
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
