"""What is asked of a server for each thing that a caller wants, request by request; it does not know who sends them.

Each is written once, as a generator that yields requests and is sent their answers; `blocking` and `awaiting` drive it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from service.client.asked import parameters_of
from service.client.described import Health, Limits, Model, read_limits, read_model
from service.client.exchange import Ask, Talk, model_path
from service.errors import BadRequest, ModelNotFound, NotFound

if TYPE_CHECKING:
    from service.client.prediction import Prediction

_QUICK_S = 10.0


class Talks:
    """Everything that can be asked of one server.

    What it tells of a model is kept by version, which does not change, and of the version that is served unasked only
    until something is refused, which may be for a reload.

    Args:
        timeout_s: What a prediction is given where it names no time; None is the server's own.
    """

    def __init__(self, timeout_s: float | None = None) -> None:
        self.timeout_s = timeout_s
        self._models: dict[tuple[str, str | None], Model] = {}
        self._sole: str | None = None

    def health(self) -> Talk[Health]:
        """Ask whether the server is ready; it is asked once."""
        reply = yield Ask("/health/ready", timeout_s=_QUICK_S, answers=(200, 503), retried=False)
        told = reply.json()
        if not isinstance(told.get("ready"), bool):
            raise reply.foreign("does not say whether it is ready")
        return Health(told["ready"], str(told.get("error", "")))

    def models(self) -> Talk[list[str]]:
        """Ask for the models' names."""
        reply = yield Ask("/v2/models")
        names = reply.json().get("models")
        if not isinstance(names, list):
            raise reply.foreign("lists no models")
        return [str(name) for name in names]

    def variants(self) -> Talk[list[dict[str, Any]]]:
        """Ask for the catalogue of variants."""
        reply = yield Ask("/variants")
        found = reply.json().get("variants")
        if not isinstance(found, list):
            raise reply.foreign("lists no variants")
        return found

    def limits(self) -> Talk[Limits]:
        """Ask for the limits that requests are held to."""
        return read_limits((yield Ask("/limits")))

    def describe(self, model: str | None = None, version: int | str | None = None) -> Talk[Model]:
        """Ask what a model takes and gives, anew."""
        name = model if model is not None else (yield from self._sole_model())
        found = read_model((yield Ask(model_path(name, version))))
        key = None if version is None else str(version)
        self._models[name, key] = self._models[name, str(found.version)] = found
        return found

    def predict(self, inputs: Any, asked: Mapping[str, Any]) -> Talk["Prediction"]:
        """Ask for a prediction.

        Args:
            inputs: Rows [B, …] for a single input, or a mapping of them by input name.
            asked: As `Asked` has it.
        """
        from service.client.predicting import predicted  # only now: it brings NumPy

        parameters = parameters_of({"timeout_s": self.timeout_s, **asked})
        try:
            model, version = asked.get("model"), asked.get("version")
            name = model if model is not None else (yield from self._sole_model())
            return (yield from predicted(name, version, inputs, parameters, self._known))
        except (BadRequest, NotFound):
            self._sole = None
            self._models = {key: found for key, found in self._models.items() if key[1] is not None}
            raise

    def _sole_model(self) -> Talk[str]:
        if self._sole is None:
            names = yield from self.models()
            if len(names) != 1:
                raise ModelNotFound(f"the server has {len(names)} models, name one in `model`: {', '.join(names)}")
            self._sole = names[0]
        return self._sole

    def _known(self, model: str, version: int | str | None) -> Talk[Model]:
        found = self._models.get((model, None if version is None else str(version)))
        return found if found is not None else (yield from self.describe(model, version))
