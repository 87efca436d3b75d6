"""What is asked of a server for each thing that a caller wants, request by request; it does not know who sends them.

Each is written once, as a generator that yields requests and is sent their answers; `blocking` and `awaiting` drive it.
"""

from collections.abc import Mapping
from typing import Any

from service.client.asked import parameters_of
from service.client.described import Health, InputTensor, Limits, Model, read_limits, read_model
from service.client.exchange import Ask, Reply, Talk, path
from service.client.prediction import Prediction
from service.client.tensors import Array, as_array, decode, encode
from service.errors import BadRequest, InvalidInput, ModelNotFound, NotFound

TIMEOUT_S = 60.0  # what a server gives a request, unless it was told otherwise
_GRACE_S = 5.0  # in which a server's own word that time is over arrives
_QUICK_S, _MOST_S = 10.0, 1e6
_OWN = ("passes", "seed", "scope", "estimator")


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
        found = read_model((yield Ask(_model_path(name, version))))
        key = None if version is None else str(version)
        self._models[name, key] = self._models[name, str(found.version)] = found
        return found

    def predict(self, inputs: Any, asked: Mapping[str, Any]) -> Talk[Prediction]:
        """Ask for a prediction.

        Args:
            inputs: Rows [B, …] for a single input, or a mapping of them by input name.
            asked: As `Asked` has it.
        """
        parameters = parameters_of({"timeout_s": self.timeout_s, **asked})
        try:
            model, version = asked.get("model"), asked.get("version")
            name = model if model is not None else (yield from self._sole_model())
            arrays = yield from self._arrays(inputs, name, version)
            body, headers = encode(arrays, parameters)
            reply = yield Ask(f"{_model_path(name, version)}/infer", body, headers, _patience_s(parameters))
            return (yield from self._prediction(reply))
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

    def _arrays(self, inputs: Any, model: str, version: int | str | None) -> Talk[dict[str, Array]]:
        if isinstance(inputs, Mapping):
            return {str(name): as_array(str(name), given) for name, given in inputs.items()}
        specs = (yield from self._known(model, version)).inputs
        if len(specs) != 1:
            names = ", ".join(spec.name for spec in specs)
            raise InvalidInput(f"the model takes {len(specs)} inputs; give a mapping with {names}")
        return {specs[0].name: as_array(specs[0].name, _by_feature(specs[0], inputs))}

    def _prediction(self, reply: Reply) -> Talk[Prediction]:
        header, tensors = decode(reply)
        try:
            model, version = str(header["model_name"]), int(header["model_version"])
            parameters = dict(header["parameters"])
            own = {name: parameters[name] for name in _OWN}
        except (KeyError, TypeError, ValueError) as error:
            raise reply.foreign(f"gives no prediction of thinnet's ({error!r})") from None
        tasks = (yield from self._known(model, version)).outputs
        outputs = _by_output(tensors, [task.name for task in tasks])
        if not all({"mean", "variance"} <= found.keys() for found in outputs.values()):
            raise reply.foreign("gives no mean and variance of each output")
        noise = {name: parameters.get("noise" if len(tasks) == 1 else f"{name}.noise", "unknown") for name in outputs}
        labels = {task.name: task.labels for task in tasks if task.labels}
        notes = tuple(parameters["notes"].splitlines()) if "notes" in parameters else ()
        return Prediction(model, version, outputs=outputs, noise=noise, labels=labels, notes=notes, **own)


def _by_output(tensors: Mapping[str, Array], outputs: list[str]) -> dict[str, dict[str, Array]]:
    """Return quantities by output and name; a tensor is `<output>.<quantity>` where there are several outputs."""
    if len(outputs) == 1:
        return {outputs[0]: dict(tensors)}
    return {
        output: {name[len(output) + 1 :]: values for name, values in tensors.items() if name.startswith(f"{output}.")}
        for output in outputs
    }


def _by_feature(spec: InputTensor, given: Any) -> Any:
    """Return a data frame's columns in the order of the input's features; NumPy would take them as they stand."""
    columns = getattr(given, "columns", None)
    if columns is None or not spec.features:
        return given
    names = [str(name) for name in columns]
    if sorted(names) != sorted(spec.features):
        raise InvalidInput(
            f"input {spec.name!r} takes the columns {', '.join(spec.features)}; given: {', '.join(names)}"
        )
    return given[list(spec.features)]


def _patience_s(parameters: Mapping[str, Any]) -> float:
    """Return how long a server may be silent; a time that is none is left to it to refuse."""
    given = parameters.get("timeout_s", TIMEOUT_S)
    return (float(given) if isinstance(given, (int, float)) and 0 < given < _MOST_S else TIMEOUT_S) + _GRACE_S


def _model_path(model: str, version: int | str | None) -> str:
    return path("v2", "models", model, *(() if version is None else ("versions", version)))
