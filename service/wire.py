"""The types on the wire, shared by server, command line and client; they do not know HTTP or torch."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictFloat, StrictInt, ValidationError

from service.errors import BadRequest, InvalidInput

Array = NDArray[Any]
Number = StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)]
MAX_AXES = 32
MAX_DEPTH = 64
_MARKS = b'[]{}"'
_OTHERS = bytes(set(range(256)) - set(_MARKS))
_BLOCK_BYTES = 1 << 20


class SiteOverride(BaseModel):
    """What acts at one site: a variant, its parameters, or both."""

    model_config = ConfigDict(extra="allow")

    variant: str | None = None


class PredictRequest(BaseModel):
    """The body of `POST /predict`.

    Attributes:
        model: The model's name; may be left out where one model is served.
        version: Its version; the highest where left out.
        inputs: Rows: a list [rows, …] for a single input, else an object of them by the inputs' names.
        passes: How many stochastic passes, N; the model's own where left out.
        variant: `trained`, or a variant for the whole plan.
        p: A drop rate for the whole plan.
        sites: By site: a variant's name, a rate, `off`, or an object of `variant` and its parameters.
        seed: The noise's seed; null asks for a fresh one; the model's own where left out.
        scope: `pass`: one pass is one network for all rows; `row`: every row has networks of its own.
        row_offset: Index of the first row in a larger table, for scope `row`.
        estimator: `sampled`, or `integrated`: the last site before each linear output exactly, the others sampled.
        tolerance: The relative standard error of a row's variances at which its passes end; `passes` is then the most.
        precision: What products run in: `float32`, or `bfloat16` or on a GPU `tf32`, which are faster and coarser.
        quantities: What to answer besides the task's defaults; `<output>.<quantity>` where there are several outputs.
        timeout_s: After how many seconds, of waiting and computing, there is no answer any more but a 504.
        dry_run: Whether only the cost is told, and nothing run.
    """

    model_config = ConfigDict(extra="forbid")

    model: str | None = None
    version: str | StrictInt | None = None
    inputs: Annotated[Any, Field(description="rows [rows, …], or an object of them by the inputs' names")]
    passes: Annotated[StrictInt | None, Field(description="how many stochastic passes, 2 to 10 000")] = None
    variant: Annotated[str | None, Field(description="'trained', or a variant for the whole plan")] = None
    p: Annotated[Number | None, Field(description="a drop rate for the whole plan")] = None
    sites: dict[str, SiteOverride | Number | str | None] | None = None
    seed: Annotated[StrictInt | None, Field(description="null asks for a fresh one")] = None
    scope: Literal["pass", "row"] = "pass"
    row_offset: Annotated[StrictInt, Field(ge=0)] = 0
    estimator: Annotated[
        Literal["sampled", "integrated"],
        Field(description="'integrated': the last site before a linear output exactly", examples=["integrated"]),
    ] = "sampled"
    tolerance: Annotated[
        Number | None, Field(description="end a row's passes at this relative error of its variances", examples=[0.05])
    ] = None
    precision: Annotated[str, Field(description="what products run in: 'float32', 'bfloat16' or, on a GPU, 'tf32'")] = (
        "float32"
    )
    quantities: list[str] = []
    timeout_s: Annotated[
        Number | None, Field(gt=0, description="time for waiting and computing (seconds), then 504", examples=[30])
    ] = None
    dry_run: Annotated[bool, Field(description="tell what it would cost, and run nothing")] = False

    def arguments(self) -> dict[str, Any]:
        """Return what `Predictor.predict` is given, besides the rows."""
        sites = {name: _plain(override) for name, override in (self.sites or {}).items()}
        seed = {"seed": self.seed} if "seed" in self.model_fields_set else {}
        own: dict[str, Any] = {"passes": self.passes, "variant": self.variant, "p": self.p, "sites": sites}
        own |= {"scope": self.scope, "row_offset": self.row_offset, "estimator": self.estimator}
        own |= {"tolerance": self.tolerance, "precision": self.precision, "quantities": self.quantities}
        return own | seed


def _plain(override: SiteOverride | float | str | None) -> Any:
    return override.model_dump(exclude_none=True) if isinstance(override, SiteOverride) else override


class PredictResponse(BaseModel):
    """The answer of `POST /predict`; the task's other quantities stand beside mean and variance.

    Attributes:
        model: Who answered.
        version: Its version.
        passes: How many passes ran, N; the most of any row with a tolerance.
        seed: The noise's seed; the same seed gives the same answer.
        scope: As asked.
        estimator: As asked.
        mean: The mean over passes [rows, …]; an object by output name where there are several outputs.
        variance: The variance between passes [rows, …], divided by N - 1.
        noise: `known` where the observation noise is, else `unknown`: then this is no prediction interval.
        notes: What the caller should know, such as values that are not finite (null in JSON).
    """

    model_config = ConfigDict(extra="allow")

    model: str
    version: int
    passes: int
    seed: int
    scope: Literal["pass", "row"]
    estimator: Literal["sampled", "integrated"]
    mean: Any
    variance: Any
    noise: Any
    notes: list[str] = []


class Error(BaseModel):
    """The body of every answer that is not a success."""

    error: Annotated[str, Field(description="what was wrong, where, and what to do")]


def is_deeper(body: bytes, limit: int) -> bool:
    """Return whether lists and objects are nested deeper than a limit in bytes that should be JSON, without parsing.

    Brackets are counted outside of strings; escapes go first, so that every quote left begins or ends one.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    only_marks = body.translate(None, _OTHERS)  # few beside the numbers, so that counting them costs nothing
    if only_marks.count(b"[") + only_marks.count(b"{") <= limit:
        return False
    marks = np.frombuffer(only_marks, np.uint8)
    inside, depth = np.False_, 0
    for start in range(0, len(marks), _BLOCK_BYTES):
        block = marks[start : start + _BLOCK_BYTES]
        within = np.bitwise_xor.accumulate(block == ord('"')) ^ inside
        opens, closes = (block == ord("[")) | (block == ord("{")), (block == ord("]")) | (block == ord("}"))
        depths = depth + np.cumsum((opens.view(np.int8) - closes.view(np.int8)) * ~within, dtype=np.int32)
        if depths.max() > limit:
            return True
        inside, depth = within[-1], int(depths[-1])
    return False


def parse_json(body: bytes, max_depth: int = MAX_DEPTH) -> Any:
    """Parse JSON; `NaN` and `Infinity`, which JSON lacks but many clients write, come through as numbers.

    Raises:
        BadRequest: With line and column, or where it is nested too deep, before it is parsed.
    """
    if is_deeper(body, max_depth):
        raise BadRequest(f"the body is nested deeper than the {max_depth} lists and objects that are read; flatten it")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        fault = error
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest(f"the body is not JSON: {fault}; send a JSON object") from None


def parse_request(value: Any) -> PredictRequest:
    """Check a parsed body.

    Raises:
        BadRequest: With the field and what it should be.
    """
    if not isinstance(value, dict):
        raise BadRequest('the body must be a JSON object such as {"inputs": [[…], …]}')
    try:
        return PredictRequest.model_validate(value)
    except ValidationError as error:
        raise BadRequest(first_problem(error.errors(), PredictRequest.model_fields)) from None


def first_problem(errors: Sequence[Any], known: Mapping[str, Any]) -> str:
    """Say in one line what a validation found first, and how many more there are."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"]) or "the body"
    if first["type"] == "extra_forbidden":
        problem = f"field {where!r} is not known; the fields are {', '.join(known)}"
    elif first["type"] == "missing":
        problem = f"field {where!r} is missing; add it"
    else:
        problem = f"field {where!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    return problem + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def arrays_from_json(inputs: Any, names: Sequence[str]) -> dict[str, Array]:
    """Return an array for each input from nested lists, for a single input also without its name.

    Raises:
        InvalidInput: With the input's name and the place of what is not a number.
    """
    if isinstance(inputs, dict):
        return {str(name): array_from_json(str(name), value) for name, value in inputs.items()}
    if len(names) != 1:
        raise InvalidInput(f"the model takes {len(names)} inputs; give an object with {', '.join(names)}")
    return {names[0]: array_from_json(names[0], inputs)}


def array_from_json(name: str, value: Any) -> Array:
    """Return nested lists of numbers or truth values as an array.

    Raises:
        InvalidInput: Where something is not a number, or lists have different lengths.
    """
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError):
        array = np.asarray(None)
    if array.dtype.kind in "biuf":
        return array
    lengths = _lengths(value)
    if len(lengths) > MAX_AXES:
        raise InvalidInput(f"input {name!r} is nested {len(lengths)} lists deep, at most {MAX_AXES} are read")
    _refuse(name, value, (), lengths)
    raise InvalidInput(f"input {name!r} is not an array of numbers")


def _lengths(value: Any) -> tuple[int, ...]:
    """Return the lengths along the first elements: what the rest should have too."""
    lengths: list[int] = []
    while isinstance(value, list):
        lengths.append(len(value))
        value = value[0] if value else None
    return tuple(lengths)


def _refuse(name: str, value: Any, place: tuple[int, ...], lengths: tuple[int, ...]) -> None:
    """Raise at the first element that keeps nested lists from being an array of numbers."""
    where = f"input {name!r}" + (f" at {list(place)}" if place else "")
    if isinstance(value, list):
        if not lengths or len(value) != lengths[0]:
            wanted = f"{lengths[0]} entries" if lengths else "a number"
            raise InvalidInput(f"{where} has {len(value)} entries where others have {wanted}; give all rows one shape")
        for index, each in enumerate(value):
            _refuse(name, each, (*place, index), lengths[1:])
    elif not isinstance(value, (int, float)):
        shown = orjson.dumps(value, default=repr).decode()[:40]
        raise InvalidInput(f"{where} is {shown}, not a number; give finite numbers")
    elif lengths:
        raise InvalidInput(f"{where} is a number where others are lists; give all rows one shape")
    elif not math.isfinite(value) or abs(value) >= 1 << 64:
        raise InvalidInput(f"{where} is {value}; give finite numbers that fit 64 bits")
