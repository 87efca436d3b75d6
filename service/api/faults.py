"""Every error as `{"error": "<what, where, cure>"}` with its status; it does not know what went wrong inside."""

import logging
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from service.api.bodies import json_answer
from service.errors import ModelFault, ThinnetError
from service.wire import first_problem

_log = logging.getLogger("thinnet")


def install(app: FastAPI) -> None:
    """Let every error of an app be answered as JSON."""
    app.add_exception_handler(ThinnetError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _internal)


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, ThinnetError)
    if isinstance(error, ModelFault):
        _log.error("%s %s: %s", request.method, request.url.path, error)
    return json_answer({"error": str(error)}, error.status)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        message = f"there is no {path}; the routes are listed at /docs"
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow") or "another method"
        message = f"{path} does not take {request.method}; use {allowed}"
    else:
        message = str(error.detail)
    answer = json_answer({"error": message}, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return json_answer({"error": first_problem(error.errors(), {})}, 400)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; no fault of the server's


async def _internal(request: Request, error: Exception) -> Response:
    number = uuid4().hex
    _log.error("%s %s: internal fault %s", request.method, request.url.path, number, exc_info=error)
    return json_answer({"error": f"an internal fault; the server's log has it under {number}"}, 500)
