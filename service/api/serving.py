"""From a checked request to an answer: limits first, then the model, off the event loop; it does not know formats."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import Request

from service.errors import BadRequest, TooLarge
from service.folder import Card
from service.prediction import Prediction
from service.predictor import Predictor
from service.repository import Repository
from service.settings import Settings
from service.wire import PredictRequest

_Result = TypeVar("_Result")


class Serving:
    """What every route shares: the models, the limits, and the one thread that computes.

    Args:
        settings: The limits.
        repository: The models.
    """

    def __init__(self, settings: Settings, repository: Repository) -> None:
        self.settings = settings
        self.repository = repository
        self._one_run = CapacityLimiter(1)  # a run uses every core itself

    async def run(self, work: Callable[..., _Result], *arguments: Any) -> _Result:
        """Compute in a thread, one run at a time, while the event loop goes on."""
        return await anyio.to_thread.run_sync(work, *arguments, limiter=self._one_run)

    async def look(self, request: PredictRequest) -> tuple[Card, Predictor]:
        """Find what a request names without waiting for runs; a version asked for the first time is loaded in a thread.

        Raises:
            NotFound, NotReady: As `find` does.
        """
        return await anyio.to_thread.run_sync(self.find, request)

    def find(self, request: PredictRequest) -> tuple[Card, Predictor]:
        """Return the card and the predictor that a request names.

        Raises:
            NotFound, NotReady: They are not there, or cannot be served.
        """
        name = request.model if request.model is not None else self.repository.sole_name()
        return self.repository.card(name, request.version), self.repository.predictor(name, request.version)

    def predict(self, predictor: Predictor, request: PredictRequest, inputs: Mapping[str, Any]) -> Prediction:
        """Check a request against the limits and predict.

        Args:
            predictor: The model.
            request: What is asked.
            inputs: An array or tensor [B, …] for each input, by name.

        Raises:
            BadRequest, TooLarge: It cannot be done, or is past a limit.
        """
        rows = max((len(each) for each in inputs.values() if getattr(each, "ndim", 0)), default=0)
        asked = request.arguments()
        if asked["tolerance"] is not None and asked["passes"] is None:
            asked["passes"] = self.settings.max_passes
        named = {key: asked[key] for key in ("passes", "variant", "p", "sites", "tolerance")}
        self._check_limits(rows, predictor.passes_of(**named))
        return predictor.predict(inputs, memory_bytes=self.settings.memory_bytes, **asked)

    def _check_limits(self, rows: int, passes: int) -> None:
        settings = self.settings
        if rows > settings.max_rows:
            raise TooLarge(f"{rows} rows are past the limit of {settings.max_rows} a request; send fewer at a time")
        if passes > settings.max_passes:
            raise BadRequest(f"passes = {passes} is past the limit of {settings.max_passes}; ask for fewer")
        if rows * passes > settings.max_row_passes:
            raise TooLarge(
                f"{rows} rows × {passes} passes are past the limit of {settings.max_row_passes} row-passes a request; "
                "send fewer rows or ask for fewer passes"
            )


def serving_of(request: Request) -> Serving:
    """Return what the app was made with."""
    serving: Serving = request.app.state.serving
    return serving
