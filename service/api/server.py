"""Start a server and say what it serves; it does not know routes."""

import socket

import uvicorn

from service import __version__
from service.api.app import create_app
from service.folder import Card
from service.predictor import Predictor
from service.repository import EXAMPLE, Repository
from service.settings import Settings
from service.signature import Input, Output


def run(settings: Settings) -> None:
    """Bind, load the models, print what is served, and serve until told to stop.

    Raises:
        InvalidModelFolder: No model can be served.
        NotReady: There is no such device.
    """
    config = uvicorn.Config("unused", settings.host, settings.port, root_path=settings.root_path, log_level="warning")
    with config.bind_socket() as listener:  # before loading: a port in use is told at once
        repository = Repository(settings.models, settings.device)
        config.app = create_app(settings, repository)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # asyncio leaves it off for such a socket
        listener.listen(config.backlog)  # what is printed next can be called at once
        print(banner(repository, _address(settings, listener), settings), flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def banner(repository: Repository, address: str, settings: Settings) -> str:
    """Return what start-up prints: the address, the models, their sites, and how to call one."""
    lines = [f"thinnet {__version__} serves {settings.models} at {address} (docs: {address}/docs)", ""]
    for name in repository.names():
        if name in repository.faults:
            continue
        lines += _model_lines(repository.card(name), repository.predictor(name))
    lines += [f"cannot serve {name}: {fault}" for name, fault in repository.faults.items()]
    return "\n".join([*lines, "", *_call_lines(repository, address), ""])


def _address(settings: Settings, listener: socket.socket) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{listener.getsockname()[1]}"


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
