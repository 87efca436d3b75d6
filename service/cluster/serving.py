"""The HTTP app in Ray Serve, on one machine or many, from its start to its end; it does not know routes.

Ray decides how many replicas there are and who gets which request. The proxies in front of them are wrapped in
`service.api.front`.
"""

import logging
import os
from pathlib import Path
from threading import Timer
from typing import TYPE_CHECKING

from service.cluster.heard import Heard
from service.cluster.joined import is_own, joined
from service.cluster.replica import APP, QUIET, application, needs, rehearsed
from service.errors import InvalidSettings, NotReady, ThinnetError
from service.settings import Settings
from service.start import METRICS

if TYPE_CHECKING:
    from ray import ObjectRef

_FRONT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.api.front.middlewares"}
_GRACE_S = 10.0  # for Ray's own end
_PATIENCE_S = 30.0
_log = logging.getLogger("thinnet")


def run(settings: Settings) -> int:
    """Deploy, print what is served, wait until told to end, drain, and return the exit code.

    Raises:
        NotReady: Ray, or a replica, cannot be started; the message says why.
        InvalidSettings: A setting does not go with Ray, or the address is public and there are no keys.
    """
    from service.api import log

    _check(settings)
    log.configure(settings)
    if is_own() or not settings.port:
        settings = _with_port(settings)
    counts = os.environ.pop(METRICS, None)  # the replicas', and not of every process that Ray starts
    heard = Heard()
    try:
        with heard.heeded(), joined(_cpus(settings)) as is_ours, heard.heeded():
            service = _Service(settings, is_ours, counts if is_ours else None)
            try:
                service.start()
                heard.wait(service.look, service.renew)
            except KeyboardInterrupt:
                service.end()
            except ThinnetError:
                service.give_up()
                raise
    except KeyboardInterrupt:
        return 128 + heard.ends[-1] if len(heard.ends) > 1 else 0
    return 0


def _check(settings: Settings) -> None:
    from service.api.exposure import keys_of

    keys_of(settings)
    if settings.workers > 1:
        raise InvalidSettings(f"workers = {settings.workers} is for engine local; with ray say min_replicas")
    if 0 < settings.max_replicas < settings.min_replicas:
        raise InvalidSettings(
            f"max_replicas = {settings.max_replicas} is below min_replicas = {settings.min_replicas}; raise it"
        )
    if settings.device not in ("cpu", "auto") and not settings.replica_gpus:
        raise InvalidSettings(
            f"device = {settings.device!r} needs a GPU, and Ray gives a replica none; say replica_gpus = 1, or a share"
        )


def _cpus(settings: Settings) -> float:
    """Return the processors that replicas take, the old ones and the new ones while they are renewed."""
    return 2 * max(settings.min_replicas, settings.max_replicas) * settings.replica_cpus


def _with_port(settings: Settings) -> Settings:
    """Return settings with a port that is free, found out before Ray takes its seconds to start."""
    from service.api.address import bound

    with bound(settings) as listener:
        return settings.model_copy(update={"port": listener.getsockname()[1]})


class _Service:
    """The app in one Ray, from its start to its end.

    Args:
        settings: What it is told.
        is_ours: Whether nobody else uses the Ray.
        counts: The folder in which the replicas of this machine add up their metrics.
    """

    def __init__(self, settings: Settings, is_ours: bool, counts: str | None) -> None:
        import ray
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._ray, self._serve = ray, serve
        self._settings, self._is_ours, self._counts = settings, is_ours, counts
        self._found = bool(serve.status().proxies)  # somebody else's Serve has an address of its own

    def start(self) -> None:
        """Deploy, and say what is served.

        Raises:
            ThinnetError: No replica can serve.
        """
        from service.api.address import say

        rehearsal = self._rehearse()
        if not self._found:
            self._listen()
        told = self._outcome(rehearsal)
        self._deploy()
        say(told)

    def look(self) -> None:
        """Forget the gauges of replicas that are no more."""
        from service.api.metrics import forget_dead

        if self._counts is not None:
            forget_dead(Path(self._counts))

    def renew(self) -> None:
        """Replace every replica by one that has read the models again; where that fails, the old ones go on."""
        try:
            self._outcome(self._rehearse())
            self._deploy()
        except ThinnetError as error:
            _log.error("the models are not read again: %s", error)

    def end(self) -> None:
        """Let the replicas answer what they have, and take nothing new; Ray itself may be gone already."""
        cut = Timer(self._settings.drain_s + _GRACE_S, self._cut)
        cut.daemon = True
        cut.start()
        self._serve.delete(APP)
        self.give_up()
        cut.cancel()

    def give_up(self) -> None:
        """Leave a cluster as it was found; what another command deployed in it goes on."""
        if not (self._is_ours or self._found):
            self._serve.shutdown()  # type: ignore[no-untyped-call] # it ships without types

    def _cut(self) -> None:
        _log.error("Ray does not end within %g s; it is left", self._settings.drain_s + _GRACE_S)
        os._exit(1)

    def _listen(self) -> None:
        settings = self._settings
        limits = {"max_body_bytes": settings.max_body_bytes, "max_held_bytes": settings.max_held_bytes}
        told = {f"THINNET_{name.upper()}": str(value) for name, value in limits.items()}
        self._serve.start(
            proxy_location="HeadOnly" if self._is_ours else "EveryNode",
            http_options={
                "host": settings.host,
                "port": settings.port,
                "root_path": settings.root_path,
                "request_timeout_s": settings.max_timeout_s + settings.body_timeout_s,
            },
            controller_options={"runtime_env": {"env_vars": _FRONT | told}},
            logging_config=QUIET,
        )

    def _rehearse(self) -> "ObjectRef[str]":
        from service.api.address import url

        settings = self._settings
        address = "the address of the cluster's Serve" if self._found else url(settings.host, settings.port)
        task = self._ray.remote(**needs(settings), max_calls=1, max_retries=0)(rehearsed)  # its process ends with it
        return task.remote(settings, address)

    def _outcome(self, rehearsal: "ObjectRef[str]") -> str:
        while not self._ray.wait([rehearsal], timeout=_PATIENCE_S)[0]:
            needs = f"replica_cpus = {self._settings.replica_cpus:g}, replica_gpus = {self._settings.replica_gpus:g}"
            _log.warning("Ray has had no room for a replica for %g s (%s)", _PATIENCE_S, needs)
        try:
            return str(self._ray.get(rehearsal))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ThinnetError):
                raise error.cause from None
            raise NotReady(f"a replica cannot be made: {_last_line(error)}") from None
        except self._ray.exceptions.RayError as error:
            raise NotReady(f"a replica cannot be made: {_last_line(error)}") from None

    def _deploy(self) -> None:
        counts = {} if self._counts is None else {METRICS: self._counts}
        try:
            self._serve.run(application(self._settings, counts), name=APP, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            raise NotReady(f"Ray keeps no replica: {_last_line(error)}") from None


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
