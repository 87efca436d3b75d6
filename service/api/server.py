"""Start a server and say what it serves; it does not know routes, nor how processes are kept.

On the CPU the models are read once, before there are workers: what was read, prepared and packed is the same memory in
all of them. A GPU cannot be used on both sides of a fork, so there the only worker reads them itself.
"""

import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import uvicorn
from prometheus_client.multiprocess import mark_process_dead

from service import __version__
from service.api import log
from service.api.address import bound, say, url
from service.api.app import create_app
from service.api.computing import compute_alone
from service.api.connection import connection_options
from service.api.exposure import keys_of
from service.api.heartbeats import Heartbeats, Pulse
from service.api.keys import Keys
from service.api.spare import share
from service.api.supervisor import Supervisor
from service.api.worker import BACKLOG, Worker, refuse_new
from service.errors import NotReady
from service.folder import Card
from service.predictor import Predictor
from service.repository import EXAMPLE, Repository, named_device
from service.settings import Settings
from service.signature import Input, Output
from service.start import METRICS
from service.threads import threads_each

_log = logging.getLogger("thinnet")


def run(settings: Settings) -> int:
    """Bind, load the models, print what is served, serve until told to stop, and return the exit code.

    Raises:
        InvalidModelFolder: No model can be served.
        NotReady: There is no such device, it takes one worker only, or the port is in use.
        InvalidSettings: The keys cannot be read, or the address is public and there are none.
    """
    log.configure(settings)
    keys = keys_of(settings)
    shares = is_shared(settings.device)
    if settings.workers > 1 and not shares:
        raise NotReady(
            f"workers = {settings.workers} cannot share the device {settings.device!r}; serve with 1 worker, which "
            "keeps a GPU busy, and on each further GPU with a server of its own"
        )
    compute_alone()  # a pool of threads would not be there after a fork
    with bound(settings) as listener:  # before loading: a port in use is told at once
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # no waiting for an ACK
        repository = Repository(settings.models, settings.device, settings.versions_kept) if shares else None
        if repository is not None:
            tell_faults(repository)
        listener.listen(BACKLOG)
        table = Heartbeats(settings.workers, settings.stall_s)
        job = Models(settings, listener, repository, keys)
        return Supervisor(job, table, settings.drain_s, settings.stall_s).run()


def keep_to_share(device: str, share: float) -> None:
    """Let this process have no more than its share of a GPU's memory; past it a run goes on with less at once.

    Args:
        device: Where networks run.
        share: The part of the GPU that is this process's; 1 or more, or none, bounds nothing.
    """
    if 0 < share < 1 and not is_shared(device):
        torch.cuda.set_per_process_memory_fraction(share, torch.device(named_device(device)).index)


def is_shared(device: str) -> bool:
    """Whether what was made on a device can be used on both sides of a fork."""
    return named_device(device).split(":")[0] == "cpu"


@dataclass(frozen=True)
class Models:
    """What a generation of workers serves.

    Attributes:
        settings: What the server is told.
        listener: Where it listens.
        repository: The models; None where each worker reads its own.
        keys: Who may ask.
    """

    settings: Settings
    listener: socket.socket
    repository: Repository | None
    keys: Keys

    def __call__(self, pulse: Pulse) -> None:
        """Serve, in a worker."""
        settings, repository = self.settings, self.repository
        share()
        compute_alone()
        if repository is None:
            repository = Repository(settings.models, settings.device, settings.versions_kept)
            tell_faults(repository)
            if not pulse.table.told:
                pulse.table.told = True
                say(banner(repository, url(settings.host, self.listener.getsockname()[1]), settings))
        app = create_app(settings, repository, self.keys, threads_each(settings.workers, settings.threads))
        app.state.serving.workers_dead = pulse.table.workers_dead
        config = _config(settings)
        config.app = app
        worker = Worker(config, app.state.serving.scheduler, pulse, settings.drain_s)
        app.state.serving.is_alone = worker.is_alone
        worker.run([self.listener])
        app.state.metrics.add()  # the other workers go on telling it

    def renewed(self, pause: Callable[[], None]) -> "Models":
        """Return the folder's models as they are now."""
        if self.repository is None:
            return self
        repository = self.repository.reload(pause)
        tell_faults(repository)
        return replace(self, repository=repository)

    def started(self) -> None:
        """Say what is served and how to call it."""
        if self.repository is not None:
            say(banner(self.repository, url(self.settings.host, self.listener.getsockname()[1]), self.settings))

    def ended(self) -> None:
        """Listen no more: when the last worker does not either, the kernel refuses connections."""
        refuse_new(self.listener)
        self.listener.close()

    def lost(self, pid: int) -> None:
        """Forget the gauges of a process that is no more."""
        if os.environ.get(METRICS):
            mark_process_dead(pid)  # type: ignore[no-untyped-call] # the library's own gap


def _config(settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        "unused",
        settings.host,
        settings.port,
        root_path=settings.root_path,
        log_level="warning",
        log_config=None,
        access_log=False,
        proxy_headers=settings.telemetry,  # which alone tells whose request it is
        loop="asyncio",  # measured beside uvloop, which does not answer more here
        backlog=1,
        **connection_options(settings),
    )


def tell_faults(repository: Repository) -> None:
    """Log what is not served, and why."""
    for name, fault in repository.faults.items():
        _log.error("model %s is not served: %s", name, fault)
    for name, faults in repository.version_faults.items():
        for fault in faults.values():
            _log.error("model %s goes on with version %s: %s", name, repository.card(name).version, fault)


def banner(repository: Repository, address: str, settings: Settings) -> str:
    """Return what start-up prints: the address, the models, their sites, and how to call one."""
    lines = [f"thinnet {__version__} serves {settings.models} at {address} (docs: {address}/docs)", ""]
    for name in repository.names():
        if name in repository.faults:
            continue
        lines += _model_lines(repository.card(name), repository.predictor(name))
    lines += [f"cannot serve {name}: {fault}" for name, fault in repository.faults.items()]
    return "\n".join([*lines, "", *_call_lines(repository, address), ""])


def _model_lines(card: Card, predictor: Predictor) -> list[str]:
    trained = [f"{site.name} ({site.trained_as})" for site in predictor.sites if site.is_trained]
    more = len(predictor.sites) - len(trained)
    sites = ", ".join(trained) or "none as trained"
    told = f"  sites    {sites}" + (f"; {more} more can be activated" if more else "")
    lost = [f"  lost     {', '.join(predictor.lost)}: what is random there is off"] if predictor.lost else []
    takes = "; ".join(_told_input(spec) for spec in predictor.inputs)
    gives = "; ".join(_told_output(output) for output in predictor.outputs)
    head = f"{card.name}  version {card.version}" + (f": {card.description}" if card.description else "")
    return [head, f"  inputs   {takes}", f"  outputs  {gives}", told, *lost]


def _told_input(spec: Input) -> str:
    shape = ", ".join("rows" if size is None else "any" if size < 0 else str(size) for size in (None, *spec.shape))
    return f"{spec.name} {spec.dtype} [{shape}]"


def _told_output(output: Output) -> str:
    labels = f" of {len(output.labels)} labels" if output.labels else ""
    return f"{output.name} {output.task}{labels}"


def _call_lines(repository: Repository, address: str) -> list[str]:
    for name in repository.names():
        place = repository.card(name).program.parents[1] / EXAMPLE
        if place.is_file() and name not in repository.faults:
            return ["Try it:", f"  curl -s {address}/predict -d @{place}"]
    name = next(each for each in repository.names() if each not in repository.faults)
    passes = repository.predictor(name, None).passes
    return [
        "Call it:",
        f"""  curl -s {address}/predict -d '{{"model": "{name}", "inputs": [[…], …], "passes": {passes}}}'""",
    ]
