"""Whether the server lives and is ready, and its metrics; it does not know how answers are computed.

These routes run on the event loop, look at plain attributes only, and wait for nothing that a run holds.
"""

import asyncio
import logging
import platform
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from resource import getpagesize
from typing import Any

import torch
from fastapi import APIRouter, FastAPI, Request, Response

from service import __version__
from service.api.bodies import json_answer
from service.api.faults import public
from service.api.log import lines_lost
from service.api.metrics import Metrics
from service.api.serving import Serving
from service.wire import Error

_SAMPLE_S = 5.0
_log = logging.getLogger("thinnet")
_NOT_READY: dict[int | str, dict[str, Any]] = {503: {"model": Error, "description": "It is not; the message says why."}}
_TEXT: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/plain": {}, "application/openmetrics-text": {}}, "description": "Prometheus's text."}
}


@asynccontextmanager
async def _sampling(app: FastAPI) -> AsyncIterator[None]:
    """Keep the gauges new while the app runs: of several processes, another one may be asked for them."""
    task = asyncio.create_task(_keep_sampling(app))
    try:
        yield
    finally:
        task.cancel()


router = APIRouter(tags=["operations"], lifespan=_sampling)


@router.get("/health/live", summary="Is the server running")
async def live() -> Response:
    """Answer `{"live": true}` while the server runs."""
    return json_answer({"live": True})


@router.get("/health/ready", summary="Is every model ready", responses=_NOT_READY)
async def ready(request: Request) -> Response:
    """Answer `{"ready": true}`, or 503 with the reason: a model's or worker's fault, a drain, or a run that hangs."""
    reasons = why_not_ready(request.app.state.serving)
    return json_answer({"ready": False, "error": "; ".join(reasons)}, 503) if reasons else json_answer({"ready": True})


@router.get("/metrics", summary="Counts for Prometheus", response_class=Response, responses=_TEXT)
async def metrics(request: Request) -> Response:
    """Tell requests, queue, compute and the uncertainty that was served, in the format that Accept prefers."""
    counted: Metrics = request.app.state.metrics
    sample(counted, request.app.state.serving)
    content, content_type = counted.exposition(request.headers.get("accept", ""))
    return Response(content, media_type=content_type)


def why_not_ready(serving: Serving) -> list[str]:
    """Return every reason for which requests should go elsewhere."""
    load = serving.scheduler
    reasons = [public(f"{name}: {fault}") for name, fault in list(serving.repository.faults.items())]
    reasons += serving.workers_dead()
    if load.closed:
        reasons.append("the server is draining; send requests to another one")
    return [*reasons, *why_stalled(serving)]


def why_stalled(serving: Serving) -> list[str]:
    """Return why only a new process would go on."""
    stalled_s, most_s = serving.scheduler.stalled_s, serving.settings.stall_s
    return [f"no progress for {stalled_s:.0f} s (stall_s = {most_s:g}); restart it"] if stalled_s > most_s else []


def sample(counted: Metrics, serving: Serving) -> None:
    """Set the gauges to what they are now."""
    load, repository = serving.scheduler, serving.repository
    counted.gauge("thinnet_in_flight", load.in_flight)
    counted.gauge("thinnet_queued_cost_seconds", load.queued_cost_s)
    counted.gauge("thinnet_stalled_seconds", load.stalled_s)
    counted.gauge("thinnet_ready", not why_not_ready(serving))
    counted.gauge("thinnet_resident_memory_bytes", resident_bytes())
    counted.gauge("thinnet_log_lines_lost", lines_lost())
    counted.gauge("thinnet_build_info", 1, __version__, platform.python_version(), torch.__version__)
    faults = set(repository.faults)
    for name in {*repository.names(), *faults}:
        counted.gauge("thinnet_model_ready", name not in faults, name)
    counted.models((name, str(repository.card(name).version)) for name in repository.names())


def resident_bytes() -> int:
    """Return the memory that this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * getpagesize()
    except (OSError, IndexError):
        return 0


async def _keep_sampling(app: FastAPI) -> None:
    while True:
        try:
            sample(app.state.metrics, app.state.serving)
        except Exception:
            _log.exception("the gauges could not be set")
        await asyncio.sleep(_SAMPLE_S)
