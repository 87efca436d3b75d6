"""A Ray to work in: the one that RAY_ADDRESS names, else one of this machine's own; it does not know what runs there.

Ray lets whoever reaches its ports run code. One that is started here listens on the loopback (replicas have a port on
every address), asks at each port for a token that this process makes, tells nobody of its use, and ends with it.
"""

import importlib
import importlib.util
import os
import secrets
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from service.errors import NotReady
from service.threads import usable_cpus

ADDRESS = "RAY_ADDRESS"
_MIB = 1 << 20
_REACH_S = 5.0
_CURE = f"check the address, or leave {ADDRESS} out for one that starts here"
_OWN_CURE = "see that TMPDIR is short, can be written and has room"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_COLOR_PREFIX": "0",
}
_OWN = {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the second: listen on the loopback only


def is_own() -> bool:
    """Tell whether a Ray would be started here."""
    return os.environ.get(ADDRESS, "local") in ("", "local")


def need_ray() -> None:
    """Prepare to import ray.

    Raises:
        NotReady: It is not installed.
    """
    os.environ |= _QUIET
    if importlib.util.find_spec("ray") is None:
        raise NotReady("engine ray needs Ray, which is not installed; pip install 'ray[serve,data]'")


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
        _check_reachable(os.environ[ADDRESS])
        with _connected():
            yield False
        return
    if "ray" not in sys.modules:  # which reads them once
        os.environ |= _OWN | {"RAY_AUTH_TOKEN": secrets.token_hex(32)}
    scratch = Path(mkdtemp(prefix="thinnet-ray-"))
    try:
        with _connected(
            address="local",
            num_cpus=max(usable_cpus(), int(-(-cpus // 1))),
            object_store_memory=store_mib * _MIB,
            include_dashboard=False,
            _temp_dir=str(scratch),
        ):
            yield True
    finally:
        rmtree(scratch, ignore_errors=True)


def _check_reachable(address: str) -> None:
    """Find out in seconds what Ray takes minutes for."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # such as auto
    try:
        socket.create_connection((host, int(port)), _REACH_S).close()
    except OSError as error:
        raise NotReady(f"the Ray at {ADDRESS}={address} does not answer: {error}; {_CURE}") from None


@contextmanager
def _connected(**options: object) -> Iterator[None]:
    ray = importlib.import_module("ray")
    try:
        ray.init(namespace="thinnet", logging_level="warning", **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        if is_own():
            raise NotReady(f"no Ray can be started here: {_first_line(error)}; {_OWN_CURE}") from None
        raise NotReady(
            f"the Ray at {ADDRESS}={os.environ[ADDRESS]} does not answer: {_first_line(error)}; {_CURE}"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
