"""A prediction: rows sent as tensors, an answer read as one; it does not know who sends them."""

from collections.abc import Callable, Mapping
from typing import Any

from service.client.described import InputTensor, Model
from service.client.exchange import Ask, Reply, Talk, model_path
from service.client.prediction import Prediction
from service.client.tensors import Array, as_array, decode, encode
from service.errors import InvalidInput

Known = Callable[[str, int | str | None], Talk[Model]]
"""Tells of a model and version what it takes and gives."""
TIMEOUT_S = 60.0  # what a server gives a request, unless it was told otherwise
_GRACE_S = 5.0  # in which a server's own word that time is over arrives
_MOST_S = 1e6
_OWN = ("passes", "seed", "scope", "estimator")


def predicted(
    model: str, version: int | str | None, inputs: Any, parameters: Mapping[str, Any], known: Known
) -> Talk[Prediction]:
    """Ask a model for a prediction.

    Args:
        model: Its name.
        version: Its version; None is the one that is served unasked.
        inputs: Rows [B, …] for a single input, or a mapping of them by input name.
        parameters: The inference's.
        known: What tells what the model takes and gives.
    """
    arrays = yield from _arrays(inputs, known(model, version))
    body, headers = encode(arrays, parameters)
    reply = yield Ask(f"{model_path(model, version)}/infer", body, headers, _patience_s(parameters))
    return (yield from _prediction(reply, known))


def _arrays(inputs: Any, known: Talk[Model]) -> Talk[dict[str, Array]]:
    if isinstance(inputs, Mapping):
        return {str(name): as_array(str(name), given) for name, given in inputs.items()}
    specs = (yield from known).inputs
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise InvalidInput(f"the model takes {len(specs)} inputs; give a mapping with {names}")
    return {specs[0].name: as_array(specs[0].name, _by_feature(specs[0], inputs))}


def _prediction(reply: Reply, known: Known) -> Talk[Prediction]:
    header, tensors = decode(reply)
    try:
        model, version = str(header["model_name"]), int(header["model_version"])
        parameters = dict(header["parameters"])
        own = {name: parameters[name] for name in _OWN}
    except (KeyError, TypeError, ValueError) as error:
        raise reply.foreign(f"gives no prediction of thinnet's ({error!r})") from None
    tasks = (yield from known(model, version)).outputs
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
