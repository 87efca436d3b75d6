"""thinnet's own routes: predict, and the catalogue of variants; they translate and delegate."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request, Response

from service.answer import answer
from service.api.bodies import json_answer, read_body
from service.api.direct import Direct
from service.api.serving import SMALL_BYTES, Call, aside, serving_of
from service.catalogue import describe_variants
from service.prediction import Prediction
from service.wire import Error, PredictResponse, arrays_from_json, parse_json, parse_request

router = APIRouter(tags=["thinnet"], route_class=Direct)
ANSWERED: dict[int | str, dict[str, Any]] = {200: {"model": PredictResponse}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": Error, "description": "The request cannot be done; the message says what, where, and the cure."},
    401: {"model": Error, "description": "No API key, or one that is not known."},
    404: {"model": Error, "description": "No such model or version."},
    408: {"model": Error, "description": "The body did not arrive in time."},
    413: {"model": Error, "description": "Past a limit, which the message names."},
    414: {"model": Error, "description": "Path and query are past their limit."},
    429: {
        "model": Error,
        "description": "Past the key's share or the server's; `Retry-After` says when to ask again.",
    },
    431: {"model": Error, "description": "The headers are past their limit."},
    500: {"model": Error, "description": "An internal fault; the server's log has it."},
    503: {"model": Error, "description": "The model cannot be served now; the message says why."},
    504: {"model": Error, "description": "No answer within the time allowed."},
}


@router.post("/predict", summary="Mean and variance of N stochastic passes", responses=ANSWERED | ERRORS)
async def predict(request: Request) -> Response:
    """Run N stochastic passes of a model and answer their mean and variance, and the task's other quantities.

    `variance` is the one between passes. `noise` says whether the observation noise is known: where it is `unknown`,
    mean and variance are no prediction interval for the target.
    """
    serving = serving_of(request)
    serving.check_room()
    body = await read_body(request, serving.settings.max_body_bytes)
    is_small = len(body) <= SMALL_BYTES
    asked = await aside(is_small, lambda: parse_request(parse_json(body, serving.settings.max_json_depth)))
    card, predictor = await serving.find(asked)

    def inputs() -> Mapping[str, Any]:
        return arrays_from_json(asked.inputs, [spec.name for spec in predictor.inputs])

    def write(prediction: Prediction) -> Response:
        return json_answer(answer(card.name, card.version, predictor.outputs, prediction))

    return await serving.answer(request, Call(asked, card, predictor, inputs, write, is_small))


@router.get("/variants", summary="Every dropout variant that is served")
async def variants() -> Response:
    """Print the catalogue: each variant's equation, what is sampled and shared, parameters, closed forms, reference."""
    return json_answer({"variants": describe_variants()})
