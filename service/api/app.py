"""The FastAPI application, made from settings and models; it does not know routes' insides."""

import torch
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from service import __version__
from service.api import docs, docs_page, faults, limits, open_inference, ops, predict
from service.api.direct import Express
from service.api.envelope import Envelope
from service.api.exposure import keys_of
from service.api.guard import Guard
from service.api.keys import Keys
from service.api.metrics import Metrics
from service.api.observed import Observed
from service.api.serving import Serving
from service.api.telemetry import telemetry
from service.repository import Repository
from service.settings import Settings

_DESCRIPTION = """
N stochastic passes of a trained network with any dropout variant active: the **mean prediction with its variance**.

Errors are always `{"error": "<what, where, cure>"}`.
"""


def create_app(
    settings: Settings | None = None,
    repository: Repository | None = None,
    keys: Keys | None = None,
    threads: int | None = None,
) -> FastAPI:
    """Make the application.

    Args:
        settings: What the server is told; from the environment where None.
        repository: The models; those of `settings.models` where None.
        keys: Who may ask; those of `settings.keys_file` where None. Workers are given the same.
        threads: How many compute; as many as torch has here where None.

    Raises:
        InvalidModelFolder: No model can be served.
        InvalidSettings: The keys cannot be read, or the address is public and there are none.
    """
    settings = settings or Settings()
    keys = keys_of(settings) if keys is None else keys
    repository = repository or Repository(settings.models, settings.device)
    app = FastAPI(
        title="thinnet",
        version=__version__,
        description=_DESCRIPTION,
        telemetry=telemetry(settings),
        redirect_slashes=False,  # it would answer with an address that the request names
        docs_url=None,
        redoc_url=None,
    )
    app.state.metrics = Metrics()
    app.state.serving = Serving(settings, repository, app.state.metrics, threads or torch.get_num_threads())
    faults.install(app)
    for router in (predict.router, open_inference.router):
        app.router.routes += router.routes  # the app's own: an included router is looked through twice
    app.include_router(ops.router)
    app.include_router(limits.router)
    docs.install(app, repository, keyed=bool(keys))
    docs_page.install(app)
    app.add_api_route("/", _root, include_in_schema=False)
    if not settings.telemetry:  # which is FastAPI's, around its routes
        app.add_middleware(Express, routes=app.router.routes)
    app.add_middleware(Guard, settings=settings, keys=keys)
    app.add_middleware(Observed, metrics=app.state.metrics)
    app.add_middleware(Envelope)  # added last, so that it is around all others
    return app


async def _root() -> RedirectResponse:
    return RedirectResponse("docs")
