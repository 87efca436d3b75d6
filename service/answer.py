"""A prediction as plain names and arrays, the same over HTTP, in a terminal and in files; it does not know JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from service.prediction import Prediction
from service.signature import Output


def answer(model: str, version: int, outputs: Sequence[Output], prediction: Prediction) -> dict[str, Any]:
    """Return the answer to a request.

    Quantities are arrays [B, …] for a single output, and objects of them by output name where there are several.
    `label` holds names where the output has them. Values that are not finite are told in `notes`.

    Args:
        model: The model's name.
        version: The model's version.
        outputs: What its outputs mean.
        prediction: What it predicted.
    """
    named = {output.name: _named(output, prediction.outputs[output.name]) for output in outputs}
    told: dict[str, Any] = {
        "model": model,
        "version": version,
        "passes": prediction.passes,
        "seed": prediction.seed,
        "scope": prediction.scope,
        "estimator": prediction.estimator,
    }
    told |= _by_quantity(named)
    told["noise"] = _single_or_all(prediction.noise)
    notes = [*prediction.notes]
    return told | ({"notes": notes} if notes else {})


def _named(output: Output, quantities: Mapping[str, Tensor]) -> dict[str, Any]:
    values: dict[str, Any] = {name: tensor.numpy() for name, tensor in quantities.items()}
    if output.labels and "label" in values:
        values["label"] = np.asarray(output.labels)[values["label"]].tolist()
    return values


def _by_quantity(named: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    if len(named) == 1:
        return dict(next(iter(named.values())))
    quantities = dict.fromkeys(name for values in named.values() for name in values)
    return {
        quantity: {output: values[quantity] for output, values in named.items() if quantity in values}
        for quantity in quantities
    }


def _single_or_all(by_output: Mapping[str, str]) -> Any:
    return next(iter(by_output.values())) if len(by_output) == 1 else dict(by_output)
