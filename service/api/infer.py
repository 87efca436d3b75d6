"""One inference of the Open Inference Protocol: its body in, its body out, JSON and binary; it does not know routes.

Source: the protocol's REST specification and Triton's binary tensor data extension. A body is a JSON header, whose
length is in `Inference-Header-Content-Length` where raw tensors follow, in the order of the inputs that declare them.
"""

from dataclasses import dataclass
from math import prod
from typing import Annotated, Any

import orjson
import torch
from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, ValidationError
from torch import Tensor

from service.api.bodies import json_answer
from service.api.tensors import bytes_of, datatype_of, tensor_from_bytes, tensor_from_json
from service.errors import BadRequest, InvalidInput, InvalidQuantity
from service.prediction import Prediction
from service.quantities import REACHED, defaults
from service.signature import Input, Output
from service.wire import MAX_DEPTH, PredictRequest, first_problem, parse_json

HEADER_LENGTH = "Inference-Header-Content-Length"
_RESERVED = ("sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output")
_OURS = (
    *("passes", "variant", "p", "sites", "seed", "scope", "row_offset"),
    *("estimator", "tolerance", "precision", "timeout_s", "quantities"),
)
FRESH, QUANTITIES = "fresh", "quantities"
Parameters = dict[str, StrictStr | StrictBool | StrictInt | StrictFloat]


class InferInput(BaseModel):
    """One input tensor of a request."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr
    shape: list[Annotated[StrictInt, Field(ge=0)]]
    datatype: StrictStr
    parameters: Parameters = {}
    data: Any = None


class InferOutput(BaseModel):
    """One output tensor that a request asks for."""

    model_config = ConfigDict(extra="forbid")

    name: StrictStr
    parameters: Parameters = {}


class InferRequest(BaseModel):
    """The JSON of `POST /v2/models/{model}/infer`.

    `parameters` takes `passes`, `variant`, `p`, `seed` (a number, or "fresh"), `scope`, `row_offset`, `estimator`,
    `tolerance`, `precision`, `timeout_s`, and `sites` as a string that holds a JSON object. `outputs` names quantities:
    `mean`, `variance`, `entropy`, `quantile_0.9`, …; `<output>.<quantity>` where there are several outputs.
    `quantities`, a parameter of names with commas between them (or of none), asks for the task's own and those, as
    `POST /predict` does.
    `model_name` may repeat the path's name, as KServe's client does.
    """

    model_config = ConfigDict(extra="forbid")

    id: StrictStr | None = None
    model_name: StrictStr | None = None
    parameters: Parameters = {}
    inputs: list[InferInput]
    outputs: list[InferOutput] = []


@dataclass(frozen=True)
class Inference:
    """A request taken apart.

    Attributes:
        request: Its JSON.
        tensors: Its input tensors by name.
        raw: Whether it was raw bytes without JSON, which is answered in binary.
    """

    request: InferRequest
    tensors: dict[str, Tensor]
    raw: bool = False


def read_inference(
    body: bytes, header_length: str | None, specs: tuple[Input, ...], max_depth: int = MAX_DEPTH
) -> Inference:
    """Take a body apart.

    Args:
        body: JSON, JSON and raw tensors, or (with a header length of 0) the raw bytes of the only input.
        header_length: The `Inference-Header-Content-Length` header.
        specs: What the model takes.
        max_depth: How deep its JSON may be nested.

    Raises:
        BadRequest: The body is not what the protocol says.
    """
    if header_length is None:
        length = len(body)
    elif header_length.isascii() and header_length.isdigit() and int(header_length) <= len(body):
        length = int(header_length)
    else:
        raise BadRequest(f"{HEADER_LENGTH} is {header_length[:40]!r}, it should be the JSON's length, 0 to {len(body)}")
    if header_length is not None and length == 0:
        return _raw_inference(body, specs)
    request = _parse(body[:length], max_depth)
    names = [each.name for each in request.inputs]
    if len(set(names)) < len(names):
        raise InvalidInput(f"an input is given twice: {', '.join(names)}; give each once")
    rest = memoryview(body)[length:]
    tensors = {}
    for each in request.inputs:
        tensors[each.name], rest = _read_tensor(each, rest)
    if len(rest):
        raise InvalidInput(f"{len(rest)} bytes follow the last tensor; correct binary_data_size or {HEADER_LENGTH}")
    return Inference(request, tensors)


def _parse(header: bytes, max_depth: int) -> InferRequest:
    value = parse_json(header, max_depth)
    if not isinstance(value, dict):
        raise BadRequest('the request must be a JSON object with "inputs"')
    try:
        return InferRequest.model_validate(value)
    except ValidationError as error:
        raise BadRequest(first_problem(error.errors(), InferRequest.model_fields)) from None


def _read_tensor(given: InferInput, rest: memoryview) -> tuple[Tensor, memoryview]:
    size = given.parameters.get("binary_data_size")
    if size is None:
        if given.data is None:
            raise InvalidInput(
                f"input {given.name!r} has neither `data` nor the parameter `binary_data_size`; give one"
            )
        return tensor_from_json(given.name, given.datatype, given.shape, given.data), rest
    if given.data is not None:
        raise InvalidInput(f"input {given.name!r} has both `data` and `binary_data_size`; give one")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= len(rest):
        raise InvalidInput(
            f"input {given.name!r}: binary_data_size = {size!r}, and {len(rest)} bytes are left in the body"
        )
    return tensor_from_bytes(given.name, given.datatype, given.shape, bytes(rest[:size])), rest[size:]


def _raw_inference(body: bytes, specs: tuple[Input, ...]) -> Inference:
    if len(specs) != 1 or list(specs[0].shape).count(-1) > 1:
        raise BadRequest("raw bytes alone serve a model with one input and one length that varies at most; send JSON")
    spec = specs[0]
    dtype: torch.dtype = getattr(torch, spec.dtype)
    fixed = prod(size for size in spec.shape if size > 0) * dtype.itemsize
    shape = [1, *(len(body) // fixed if size < 0 else size for size in spec.shape)]
    tensor = tensor_from_bytes(spec.name, datatype_of(dtype), shape, body)
    return Inference(InferRequest(inputs=[]), {spec.name: tensor}, raw=True)


def to_predict_request(inference: Inference, model: str, version: str | None) -> PredictRequest:
    """Return what is asked in thinnet's own terms.

    Raises:
        BadRequest: A parameter is unknown or malformed.
    """
    parameters = inference.request.parameters
    if inference.request.model_name not in (None, model):
        raise BadRequest(
            f"model_name is {inference.request.model_name[:80]!r}, the path says {model[:80]!r}; leave it out"
        )
    for name in parameters:
        if name not in (*_OURS, *_RESERVED) and not name.startswith("triton_"):
            raise BadRequest(f"parameter {name[:40]!r} is not known; the parameters are {', '.join(_OURS)}")
    own: dict[str, Any] = {name: parameters[name] for name in _OURS if name in parameters}
    more = str(own.pop(QUANTITIES, ""))
    if own.get("seed") == FRESH:
        own["seed"] = None
    if "sites" in own:
        own["sites"] = parse_json(str(own["sites"]).encode())
    wanted = [*(each.name for each in inference.request.outputs), *filter(None, more.split(","))]
    asked = {"model": model, "version": version, "inputs": None, "quantities": wanted, **own}
    try:
        return PredictRequest.model_validate(asked)
    except ValidationError as error:
        raise BadRequest(f"parameters: {first_problem(error.errors(), own)}") from None


def output_names(outputs: tuple[Output, ...]) -> list[str]:
    """Return the names of the tensors that come unasked: mean and variance of each output."""
    return [_tensor_name(output, what, outputs) for output in outputs for what in ("mean", "variance")]


def _reached(outputs: tuple[Output, ...], inference: Inference) -> list[str]:
    """Return the names of the tensors that tell what a tolerance reached, where one is given."""
    given = "tolerance" in inference.request.parameters
    return [_tensor_name(output, what, outputs) for output in outputs for what in REACHED] if given else []


def known_tensors(outputs: tuple[Output, ...]) -> list[tuple[Output, str, str]]:
    """Return (output, quantity, tensor name) of what may be asked for, quantiles aside."""
    extra = ("standard_error", *REACHED, "deterministic", "samples")
    return [
        (output, what, _tensor_name(output, what, outputs))
        for output in outputs
        for what in (*defaults(output), *extra)
    ]


def _tensor_name(output: Output, quantity: str, outputs: tuple[Output, ...]) -> str:
    return quantity if len(outputs) == 1 else f"{output.name}.{quantity}"


def write_inference(
    inference: Inference, model: str, version: int, outputs: tuple[Output, ...], prediction: Prediction
) -> Response:
    """Return the response: JSON, followed by raw tensors where they were asked for."""
    tensors = {
        _tensor_name(output, what, outputs): values
        for output in outputs
        for what, values in prediction.outputs[output.name].items()
    }
    all_of_them = QUANTITIES in inference.request.parameters
    unasked = list(tensors) if all_of_them else [*output_names(outputs), *_reached(outputs, inference)]
    asked = inference.request.outputs or [InferOutput(name=name) for name in unasked]
    every = bool(inference.request.parameters.get("binary_data_output", False)) or inference.raw
    described, raw = [], []
    for each in asked:
        if each.name not in tensors:
            raise InvalidQuantity(f"there is no output {each.name!r}; the outputs are {', '.join(tensors)}")
        tensor = tensors[each.name]
        entry: dict[str, Any] = {"name": each.name, "shape": list(tensor.shape), "datatype": datatype_of(tensor.dtype)}
        if each.parameters.get("binary_data", every):
            raw.append(bytes_of(tensor))
            entry["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            entry["data"] = tensor.flatten().numpy()
        described.append(entry)
    told = {"model_name": model, "model_version": str(version)}
    told |= {"id": inference.request.id} if inference.request.id is not None else {}
    content = {**told, "parameters": _answer_parameters(prediction), "outputs": described}
    return _binary(content, raw) if raw else json_answer(content)


def _answer_parameters(prediction: Prediction) -> dict[str, Any]:
    several = len(prediction.noise) > 1
    noise = {f"{name}.noise" if several else "noise": known for name, known in prediction.noise.items()}
    notes = {"notes": "\n".join(prediction.notes)} if prediction.notes else {}
    told = {"passes": prediction.passes, "seed": prediction.seed, "scope": prediction.scope}
    return {**told, "estimator": prediction.estimator, **noise, **notes}


def _binary(content: dict[str, Any], raw: list[bytes]) -> Response:
    header = orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(
        b"".join([header, *raw]),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )
