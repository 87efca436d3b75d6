"""The OpenAPI document, with the served models' own examples and the schemas of bodies, which routes read raw."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from service.api.infer import InferRequest
from service.api.tensors import datatype_of
from service.repository import Repository
from service.signature import Input
from service.wire import PredictRequest

_BODIES = {"/predict": PredictRequest, "/v2/models/{model}/infer": InferRequest}
_REFERENCE = "#/components/schemas/{model}"


_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def install(app: FastAPI, repository: Repository, *, keyed: bool = False) -> None:
    """Let the app describe itself with the models' examples, made when first asked for, and how a key is sent."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, repository)
            if keyed:
                app.openapi_schema["components"]["securitySchemes"] = _SCHEMES
                app.openapi_schema["security"] = [{name: []} for name in _SCHEMES]
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # FastAPI's own way to extend the document


def _document(app: FastAPI, repository: Repository) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = models_json_schema(
        [(PredictRequest, "validation"), (InferRequest, "validation")], ref_template=_REFERENCE
    )
    document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
    requests = {name: request for name in repository.names() if (request := repository.example(name)) is not None}
    for path, operations in document["paths"].items():
        if "post" in operations:
            is_infer = path.endswith("/infer")
            examples = {
                name: {"value": _as_infer(body, repository.card(name).inputs) if is_infer else body}
                for name, body in requests.items()
            }
            schema = _REFERENCE.format(model=(InferRequest if is_infer else PredictRequest).__name__)
            content = {"application/json": {"schema": {"$ref": schema}, "examples": examples}}
            operations["post"]["requestBody"] = {"required": True, "content": content}
    return document


def _as_infer(request: dict[str, Any], specs: Sequence[Input]) -> dict[str, Any]:
    """Return an example of `POST /predict` in the protocol's terms."""
    given = request["inputs"]
    named = given if isinstance(given, dict) else {specs[0].name: given}
    inputs = [
        {
            "name": spec.name,
            "datatype": datatype_of(getattr(torch, spec.dtype)),
            "shape": list(np.shape(named[spec.name])),
            "data": named[spec.name],
        }
        for spec in specs
    ]
    parameters = {key: value for key, value in request.items() if key in ("passes", "seed", "variant", "p")}
    return {"inputs": inputs, "parameters": parameters, "outputs": [{"name": "mean"}, {"name": "variance"}]}
