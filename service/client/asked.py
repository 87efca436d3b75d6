"""What a prediction may be asked with, checked by name; what values mean it leaves to the server."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import orjson

from service.errors import BadRequest

Seed = int | None | Literal["default"]
FRESH = "fresh"


class Asked(TypedDict, total=False):
    """The arguments of `predict` besides the rows; what is left out is the model's own, or as `POST /predict` has it.

    Attributes:
        model: The model's name; may be left out where one is served.
        version: Its version; the highest where left out.
        passes: How many stochastic passes, N.
        variant: `trained`, or a variant for the whole plan.
        p: A drop rate for the whole plan.
        sites: By site: a variant's name, a rate, `off`, or a mapping of `variant` and its parameters.
        seed: The noise's seed; None asks for a fresh one, which the answer tells.
        scope: `pass`: one pass is one network for all rows; `row`: every row has networks of its own.
        row_offset: Index of the first row in a larger table, for scope `row`.
        estimator: `sampled` or `integrated`.
        tolerance: The relative standard error of a row's variances at which its passes end.
        precision: What products run in: `float32`, `bfloat16` or, on a GPU, `tf32`.
        quantities: What to answer besides the task's own; `<output>.<quantity>` where there are several outputs.
        timeout_s: How long the server may take; the client's own where left out.
    """

    model: str | None
    version: int | str | None
    passes: int | None
    variant: str | None
    p: float | None
    sites: Mapping[str, Any] | None
    seed: Seed
    scope: str
    row_offset: int
    estimator: str
    tolerance: float | None
    precision: str
    quantities: Sequence[str] | None
    timeout_s: float | None


_OF_THE_PATH = ("model", "version")


def parameters_of(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of an inference; what is None is left to the model, but a seed, which is then a fresh one.

    Raises:
        BadRequest: A name is unknown, or a value has no form in JSON.
    """
    unknown = [name for name in asked if name not in Asked.__annotations__]
    if unknown:
        raise BadRequest(f"{unknown[0]!r} cannot be asked for; there are {', '.join(Asked.__annotations__)}")
    given = {name: value for name, value in asked.items() if name not in _OF_THE_PATH and value is not None}
    if given.get("seed") == "default":
        del given["seed"]
    elif "seed" in asked and asked["seed"] is None:
        given["seed"] = FRESH
    try:
        given["quantities"] = _listed(given.get("quantities", ()))
        if "sites" in given:
            given["sites"] = orjson.dumps(given["sites"], option=orjson.OPT_SERIALIZE_NUMPY).decode()
        orjson.dumps(given, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as error:
        raise BadRequest(f"what is asked for cannot be sent: {error}; give numbers and text") from None
    return given


def _listed(quantities: Sequence[str]) -> str:
    if isinstance(quantities, str):
        raise BadRequest(f"quantities = {quantities!r} is text; give a list, [{quantities!r}]")
    return ",".join(quantities)
