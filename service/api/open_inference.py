"""The Open Inference Protocol v2 under /v2, REST with the binary tensor data extension; it translates and delegates."""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from fastapi import APIRouter, Request, Response

from service import __version__
from service.api import ops
from service.api.bodies import json_answer, read_body
from service.api.direct import Direct
from service.api.infer import (
    HEADER_LENGTH,
    known_tensors,
    read_inference,
    to_predict_request,
    write_inference,
)
from service.api.predict import ERRORS
from service.api.serving import SMALL_BYTES, Call, aside, serving_of
from service.api.tensors import datatype_of
from service.prediction import Prediction
from service.predictor import Predictor
from service.signature import Output, Task
from service.wire import PredictRequest

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=Direct)
PLATFORM = "pytorch_thinnet"
_identities: WeakKeyDictionary[Predictor, dict[str, Any]] = WeakKeyDictionary()


router.add_api_route("/health/live", ops.live, summary="Is the server running")
router.add_api_route("/health/ready", ops.ready, summary="Is every model ready", responses={503: ERRORS[503]})


@router.get("", summary="What this server is")
@router.get("/", include_in_schema=False)
async def server() -> Response:
    """Tell the server's name, version and protocol extensions."""
    return json_answer({"name": "thinnet", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get("/models", summary="The models' names")
async def models(request: Request) -> Response:
    """List the models that are served."""
    return json_answer({"models": serving_of(request).repository.names()})


@router.get("/models/{model}", summary="A model's inputs, outputs and sites", responses=ERRORS)
@router.get("/models/{model}/versions/{version}", summary="A version's inputs, outputs and sites", responses=ERRORS)
async def metadata(request: Request, model: str, version: str | None = None) -> Response:
    """Tell a model's inputs, outputs, sites and which variants fit them, beside what the protocol asks for."""
    found = PredictRequest(model=model, version=version, inputs=None)
    card, predictor = await serving_of(request).find(found)
    told: dict[str, Any] = {
        "name": card.name,
        "version": str(card.version),
        "versions": [str(number) for number in card.versions],
        "platform": PLATFORM,
    }
    told |= await aside(predictor in _identities, _identity, predictor)
    told |= {"inputs": _inputs(predictor), "outputs": _outputs(predictor)}
    told |= {"description": card.description, "defaults": _defaults(predictor), "score": dict(card.score)}
    told |= {"couples_rows": predictor.couples_rows}
    return json_answer({**told, "tasks": _tasks(predictor), "sites": _sites(predictor), "lost": list(predictor.lost)})


@router.get("/models/{model}/ready", summary="Is a model ready", responses=ERRORS)
@router.get("/models/{model}/versions/{version}/ready", summary="Is a version ready", responses=ERRORS)
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """Answer `{"name": …, "ready": true}`, or 503 with the reason."""
    await serving_of(request).find(PredictRequest(model=model, version=version, inputs=None))
    return json_answer({"name": model, "ready": True})


@router.post("/models/{model}/infer", summary="Mean and variance as tensors", responses=ERRORS)
@router.post(
    "/models/{model}/versions/{version}/infer", summary="Mean and variance of a version, as tensors", responses=ERRORS
)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Run N stochastic passes; `mean` and `variance` are output tensors, other quantities on request.

    Tensors travel as JSON or as raw bytes behind it, both ways.
    """
    serving = serving_of(request)
    serving.check_room()
    body = await read_body(request, serving.settings.max_body_bytes)
    is_small = len(body) <= SMALL_BYTES
    card, predictor = await serving.find(PredictRequest(model=model, version=version, inputs=None))
    read = body, request.headers.get(HEADER_LENGTH), predictor.inputs, serving.settings.max_json_depth
    inference = await aside(is_small, read_inference, *read)
    asked = to_predict_request(inference, model, version)

    def write(prediction: Prediction) -> Response:
        return write_inference(inference, card.name, card.version, predictor.outputs, prediction)

    return await serving.answer(request, Call(asked, card, predictor, lambda: inference.tensors, write, is_small))


def _identity(predictor: Predictor) -> dict[str, Any]:
    """Return what tells a network from another, and about what it costs; all its numbers are looked at once."""
    if predictor not in _identities:
        _identities[predictor] = {"fingerprint": predictor.fingerprint(), "operations": predictor.operations()}
    return _identities[predictor]


def _inputs(predictor: Predictor) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "datatype": datatype_of(getattr(torch, spec.dtype)),
            "shape": [-1, *spec.shape],
            "features": list(spec.features),
            "units": list(spec.units),
        }
        for spec in predictor.inputs
    ]


def _outputs(predictor: Predictor) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "datatype": "INT64" if what in ("label", "passes_used") else "FP32",
            "shape": _shape(output, what),
        }
        for output, what, name in known_tensors(predictor.outputs)
    ]


def _shape(output: Output, what: str) -> list[int]:
    if what == "passes_used":
        return [-1]
    row = list(output.shape)
    if output.task is Task.GAUSSIAN and row and row[-1] > 0:
        row[-1] //= 2
    if output.task is Task.CLASSIFICATION and what not in (
        "mean",
        "variance",
        "standard_error",
        "variance_error",
        "deterministic",
        "samples",
    ):
        axis = output.class_axis - 1 if output.class_axis > 0 else output.class_axis
        del row[axis]
    return [-1, -1, *row] if what == "samples" else [-1, *row]


def _defaults(predictor: Predictor) -> dict[str, Any]:
    return {"passes": predictor.passes, "seed": predictor.seed, "variant": predictor.variant}


def _tasks(predictor: Predictor) -> list[dict[str, Any]]:
    return [
        {"name": output.name, "task": output.task, "labels": list(output.labels), "unit": output.unit}
        for output in predictor.outputs
    ]


def _sites(predictor: Predictor) -> list[dict[str, Any]]:
    return [
        {
            "name": site.name,
            "kind": site.kind,
            "shape": list(site.shape),
            "variant": site.variant,
            "p": site.p,
            "parameters": dict(site.parameters),
            "fits": list(predictor.fitting(site.name)),
        }
        for site in predictor.sites
    ]
