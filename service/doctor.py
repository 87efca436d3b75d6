"""What a machine has, and which way the passes of each model take on it, and why; it changes nothing."""

import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from service import __version__
from service.errors import ThinnetError
from service.graph.forms import path_on
from service.graph.replayed import replays_on
from service.plan import make_plan
from service.predictor import Predictor
from service.repository import Repository, check_device


def findings(models: Path, device: str) -> Iterator[tuple[str, str]]:
    """Yield what was looked at and what was found, the machine's first.

    Args:
        models: A folder of models, or a model's; where there is none, that is a finding.
        device: Where networks would run.

    Raises:
        NotReady: There is no such device.
    """
    found = check_device(device)
    yield "thinnet", f"{__version__}, Python {platform.python_version()}"
    yield "torch", f"{torch.__version__}, {_gpus()}"
    yield "triton", _version("triton")
    yield "runs on", f"{found}, as {device!r} was asked for; threads on the CPU: {torch.get_num_threads()}"
    yield from path_on(found)
    yield "replays", replays_on(found)
    try:
        repository = Repository(models, found)
        names = repository.names()
    except ThinnetError as error:
        yield "models", str(error)
        return
    for name in names:
        fault = repository.faults.get(name)
        yield name, f"cannot be served: {fault}" if fault else _way(repository.predictor(name))


def _gpus() -> str:
    if torch.version.cuda is None:
        return "a build without CUDA"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return f"CUDA {torch.version.cuda}, " + (", ".join(names) or "which sees no GPU")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _way(predictor: Predictor) -> str:
    """Return how the passes of a model's own plan run."""
    try:
        compiled = predictor.compile(make_plan(predictor.sites, predictor.variant))
        return "; ".join([f"passes run {compiled.mode(per_row=False)}", *compiled.notes])
    except ThinnetError as error:
        return str(error)
