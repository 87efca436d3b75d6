"""One replica of the HTTP app, and what Ray is told of it; it does not know how many there are, nor who deploys.

A replica is what `thinnet serve` calls a worker: it reads the models, checks keys and limits, and schedules by itself.
"""

from typing import TYPE_CHECKING, Any

from service.errors import NotReady
from service.settings import Settings
from service.threads import numeric_environment, threads_each

if TYPE_CHECKING:
    from ray.serve import Application

APP = "thinnet"
QUIET = {"log_level": "WARNING", "enable_access_log": False}  # the app has a log
_DRAINED_S = 0.25  # how often a replica that is to end looks whether it may
_TRIES = 2  # of a replica's start, before it is said to fail


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


def made(settings: Settings) -> Any:
    """Make the app in a replica."""
    from service.api import log
    from service.api.app import create_app
    from service.api.computing import compute_alone
    from service.api.server import keep_to_share, tell_faults
    from service.repository import Repository

    log.configure(settings)
    compute_alone()
    keep_to_share(settings.device, settings.replica_gpus)
    repository = Repository(settings.models, settings.device, settings.versions_kept)
    tell_faults(repository)
    threads = threads_each(1, settings.threads, int(settings.replica_cpus))
    return create_app(settings, repository, threads=threads)


def rehearsed(settings: Settings, address: str) -> str:
    """Read the models where a replica would, and return what start-up prints; what is wrong is told before any is."""
    from service.api.exposure import keys_of
    from service.api.server import banner
    from service.repository import Repository

    keys_of(settings)
    return banner(Repository(settings.models, settings.device, settings.versions_kept), address, settings)


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
        graceful_shutdown_wait_loop_s=_DRAINED_S,
        health_check_period_s=min(10.0, settings.stall_s),
        max_constructor_retry_count=_TRIES,
        logging_config=QUIET,
        max_surge_percent=100,  # a new version's replicas are ready before old ones end
        ray_actor_options=needs(settings, environment),
        **options,
    )
    return deployment(serve.ingress(build)(Replica)).bind()


def needs(settings: Settings, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Return what Ray gives a replica: processors, GPUs and variables of the environment."""
    variables = {**numeric_environment(), **(environment or {})}
    return {
        "num_cpus": settings.replica_cpus,
        "num_gpus": settings.replica_gpus,
        "runtime_env": {"env_vars": variables},
    }
