"""The HTTP app in Ray Serve: replicas that each make their own, on one machine or many; it does not know routes.

A replica is what `thinnet serve` calls a worker: it reads the models, checks keys and limits, and schedules by itself.
Ray decides how many there are and who gets which request. The proxies in front of them are `service.api.front`'s.
"""

import logging
import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from types import FrameType
from typing import TYPE_CHECKING, Any

from service.cluster.joined import is_own, joined
from service.errors import InvalidSettings, NotReady
from service.settings import Settings
from service.start import METRICS
from service.threads import numeric_environment, threads_each

if TYPE_CHECKING:
    from ray.serve import Application

APP = "thinnet"
_FRONT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.api.front.middlewares"}
_QUIET = {"log_level": "WARNING", "enable_access_log": False}  # the app has a log
_LOOK_S = 0.25
_GRACE_S = 10.0  # for Ray's own end
_TRIES = 2  # of a replica's start, before it is said to fail
_NAMED = re.compile(r"service\.errors\.\w+: (.+)")
_log = logging.getLogger("thinnet")


class Replica:
    """What Ray keeps of the app; `serve.ingress` adds the app itself."""

    app: Any

    def check_health(self) -> None:
        """Fail where only a new replica would go on; a model at fault would be so in any.

        Raises:
            NotReady: There is work and no progress.
        """
        from service.api.ops import why_stalled

        if reasons := why_stalled(self.app.state.serving):
            raise NotReady("; ".join(reasons))

    def told(self, address: str) -> str:
        """Return what start-up prints."""
        from service.api.server import banner

        serving = self.app.state.serving
        return banner(serving.repository, address, serving.settings)


def made(settings: Settings) -> Any:
    """Make the app in a replica."""
    from service.api import log
    from service.api.app import create_app
    from service.api.server import compute_with, tell_faults
    from service.repository import Repository

    log.configure(settings)
    compute_with(threads_each(1, settings.threads, int(settings.replica_cpus)))
    repository = Repository(settings.models, settings.device, settings.versions_kept)
    tell_faults(repository)
    return create_app(settings, repository)


def application(settings: Settings, environment: dict[str, str] | None = None) -> "Application":
    """Return what Ray is to keep: as many replicas of the app as the settings say.

    Args:
        settings: What each is told.
        environment: Variables of their processes besides those that numerical libraries read.
    """
    from ray import serve

    def build() -> Any:  # in each replica
        return made(settings)

    options: dict[str, Any] = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        numbers = {"min_replicas": settings.min_replicas, "max_replicas": settings.max_replicas}
        options = {"autoscaling_config": {**numbers, "target_ongoing_requests": settings.target_requests}}
    deployment = serve.deployment(
        name=APP,
        max_ongoing_requests=settings.max_replica_requests,
        max_queued_requests=settings.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        graceful_shutdown_timeout_s=settings.drain_s,
        graceful_shutdown_wait_loop_s=_LOOK_S,
        health_check_period_s=min(10.0, settings.stall_s),
        max_constructor_retry_count=_TRIES,
        logging_config=_QUIET,
        max_surge_percent=100,  # a new version's replicas are ready before old ones end
        ray_actor_options={
            "num_cpus": settings.replica_cpus,
            "num_gpus": settings.replica_gpus,
            "runtime_env": {"env_vars": {**numeric_environment(), **(environment or {})}},
        },
        **options,
    )
    return deployment(serve.ingress(build)(Replica)).bind()


def run(settings: Settings) -> int:
    """Deploy, print what is served, wait until told to end, drain, and return the exit code.

    Raises:
        NotReady: Ray, or a replica, cannot be started; the message says why.
        InvalidSettings: A setting does not go with Ray, or the address is public and there are no keys.
    """
    from service.api import log

    _check(settings)
    log.configure(settings)
    if is_own():
        settings = _with_port(settings)
    counts = os.environ.pop(METRICS, None)  # the replicas', and not of every process that Ray starts
    heard = _Heard()
    try:
        with heard.heeded(), joined(2 * settings.max_replicas * settings.replica_cpus) as is_ours, heard.heeded():
            service = _Service(settings, is_ours, counts if is_ours else None)
            try:
                service.start()
                heard.wait(service.look, service.renew)
            except KeyboardInterrupt:
                service.end()
    except KeyboardInterrupt:
        return 128 + heard.ends[-1] if len(heard.ends) > 1 else 0
    return 0


def _check(settings: Settings) -> None:
    from service.api.exposure import keys_of

    keys_of(settings)
    if settings.workers > 1:
        raise InvalidSettings(f"workers = {settings.workers} is for engine local; with ray say min_replicas")
    if settings.max_replicas < settings.min_replicas:
        raise InvalidSettings(
            f"max_replicas = {settings.max_replicas} is below min_replicas = {settings.min_replicas}; raise it"
        )
    if settings.device != "cpu" and not settings.replica_gpus:
        raise InvalidSettings(
            f"device = {settings.device!r} needs a GPU, and Ray gives a replica none; say replica_gpus = 1, or a share"
        )


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
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._serve, self._settings, self._is_ours, self._counts = serve, settings, is_ours, counts
        self._found = bool(serve.status().proxies)  # somebody else's Serve has an address of its own

    def start(self) -> None:
        """Deploy, and say what is served."""
        from service.api.address import say, url

        address = "the address of the cluster's Serve" if self._found else url(self._settings.host, self._settings.port)
        if not self._found:
            self._listen()
        say(self._deploy().told.remote(address).result())

    def look(self) -> None:
        """Forget the gauges of replicas that are no more."""
        from service.api.metrics import forget_dead

        if self._counts is not None:
            forget_dead(Path(self._counts))

    def renew(self) -> None:
        """Replace every replica by one that has read the models again; where that fails, the old ones go on."""
        try:
            self._deploy()
        except NotReady as error:
            _log.error("the models are not read again: %s", error)

    def end(self) -> None:
        """Let the replicas answer what they have, and take nothing new; Ray itself may be gone already."""
        cut = Timer(self._settings.drain_s + _GRACE_S, self._cut)
        cut.daemon = True
        cut.start()
        self._serve.delete(APP)
        if not (self._is_ours or self._found):
            self._serve.shutdown()  # type: ignore[no-untyped-call] # it ships without types
        cut.cancel()

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
            logging_config=_QUIET,
        )

    def _deploy(self) -> Any:
        counts = {} if self._counts is None else {METRICS: self._counts}
        try:
            return self._serve.run(application(self._settings, counts), name=APP, route_prefix="/")
        except (RuntimeError, TimeoutError) as error:
            raise NotReady(f"Ray cannot keep a replica: {_reason(str(error))}") from None


def _reason(text: str) -> str:
    """Return what a replica said of itself, in a text with its traceback; else the text's last line."""
    if named := _NAMED.findall(text):
        return str(named[-1])
    return text.strip().splitlines()[-1]


class _Heard:
    """The signals that came: SIGTERM and SIGINT end, as KeyboardInterrupt, and SIGHUP renews.

    Attributes:
        ends: Which ended, in order.
    """

    def __init__(self) -> None:
        self.ends: list[int] = []
        self._renews = False

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Heed them."""
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._renew)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, look: Any, renew: Any) -> None:
        """Look now and then, and renew when told to, until told to end.

        Raises:
            KeyboardInterrupt: Always.
        """
        while not self.ends:
            time.sleep(_LOOK_S)
            look()
            if self._renews:
                self._renews = False
                renew()
        raise KeyboardInterrupt

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.ends.append(number)
        raise KeyboardInterrupt

    def _renew(self, number: int, frame: FrameType | None) -> None:
        self._renews = True
