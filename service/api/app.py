"""The FastAPI application, made from settings and models; it does not know routes' insides."""

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from service import __version__
from service.api import docs, faults, open_inference, ops, predict
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


def create_app(settings: Settings | None = None, repository: Repository | None = None) -> FastAPI:
    """Make the application.

    Args:
        settings: What the server is told; from the environment where None.
        repository: The models; those of `settings.models` where None.

    Raises:
        InvalidModelFolder: No model can be served.
    """
    settings = settings or Settings()
    repository = repository or Repository(settings.models, settings.device)
    app = FastAPI(
        title="thinnet",
        version=__version__,
        description=_DESCRIPTION,
        telemetry=telemetry(settings),
    )
    app.state.metrics = Metrics()
    app.state.serving = Serving(settings, repository, app.state.metrics)
    faults.install(app)
    app.add_middleware(Observed, metrics=app.state.metrics)  # the last one added is the outermost
    app.include_router(ops.router)
    app.include_router(predict.router)
    app.include_router(open_inference.router)
    docs.install(app, repository)
    app.add_api_route("/", _root, include_in_schema=False)
    return app


async def _root() -> RedirectResponse:
    return RedirectResponse("docs")
