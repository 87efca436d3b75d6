"""Every error as `{"error": "<what, where, cure>"}` with its status; it does not know what went wrong inside."""

import logging
import re
from functools import cache
from math import ceil

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Scope

from service.api.bodies import json_answer
from service.api.envelope import request_id
from service.errors import FAULT, ModelFault, NotReady, ThinnetError, TooSlow, Unauthorized
from service.wire import first_problem

_log = logging.getLogger("thinnet")
_FOLDERS = re.compile(r"(?<![\w.:/-])/(?:[^\s/:;,'\"()\[\]]+/)+")


def install(app: FastAPI) -> None:
    """Let every error of an app be answered as JSON."""
    app.add_exception_handler(ThinnetError, _ours)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _internal)


def named_fault(scope: Scope, error: ThinnetError) -> Response:
    """Note why a request fails, log what is the model's own fault, and return the answer."""
    scope.setdefault("state", {})["reason"] = reason_of(type(error).__name__)
    if isinstance(error, ModelFault):
        _log.error("%s %s: %s (%s)", scope["method"], scope["path"], error, request_id(scope))
    return answer_to(error)


def answer_to(error: ThinnetError) -> Response:
    """Return the answer to a fault that thinnet names."""
    told = public(str(error)) if isinstance(error, (ModelFault, NotReady)) else str(error)
    answer = json_answer({"error": told}, error.status)
    answer.headers[FAULT] = type(error).__name__
    if error.retry_after_s is not None:
        answer.headers["Retry-After"] = str(max(1, ceil(error.retry_after_s)))
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = 'Bearer realm="thinnet"'
    if isinstance(error, TooSlow):
        answer.headers["Connection"] = "close"  # the rest of the body is not waited for
    return answer


def public(reason: str) -> str:
    """Return why a model cannot be served without the folders that its file lies in."""
    return _FOLDERS.sub("", reason)


def internal_fault(scope: Scope, error: Exception) -> Response:
    """Log what went wrong inside, and return an answer that tells only where to look."""
    number = request_id(scope)
    _log.error("%s %s: internal fault %s", scope["method"], scope["path"], number, exc_info=error)
    return json_answer({"error": f"an internal fault; the server's log has it under {number}"}, 500)


@cache
def reason_of(fault: str) -> str:
    """Return the name of a fault's class as metrics and logs have it: `invalid_input`."""
    return re.sub(r"(?<=.)(?=[A-Z])", "_", fault).lower()


async def _ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, ThinnetError)
    return named_fault(request.scope, error)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    path = request.url.path[:200]
    if error.status_code == 404:
        docs = str(request.scope.get("root_path", "")).rstrip("/") + "/docs"
        message = f"there is no {path}; the routes are listed at {docs}"
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


async def _internal(request: Request, error: Exception) -> Response:
    return internal_fault(request.scope, error)
