"""Turns every error into an HTTP response in OpenAI's format."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serve.accounting import current_account
from serve.errors import BadRequest, NotFound, QuotaUsedUp, ServeError, TooSlow
from serve.limits import EXCEEDED
from serve.tracing import REQUEST_ID

log = logging.getLogger(__name__)

MAX_QUOTE = 200
"""Longest quotation of a client's input in an error, in characters."""
MAX_MESSAGE = 1000
MAX_FAULTS = 1000
CLIENT_LEFT = 499
"""Status of a request whose client disconnected: never sent, but logged and counted."""


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every error response."""

    error: ErrorDetail


class NotAllowed(ServeError):
    """The path does not take this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


def add_handlers(app: FastAPI) -> None:
    """Make `app` answer every error in OpenAI's format."""
    app.add_exception_handler(ServeError, _serve_error)
    app.add_exception_handler(RequestValidationError, _query_error)
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_exception_handler(ClientDisconnect, _client_left)
    app.add_exception_handler(Exception, _bug)


def error_response(
    error: ServeError, headers: Mapping[str, str] | None = None, more_fields: Mapping[str, Any] | None = None
) -> JSONResponse:
    """Return an error's HTTP response. headers: sent besides those of the error's status. more_fields: of its JSON."""
    more = dict(headers or {})
    if error.retry_after_s is not None:
        more["retry-after"] = str(error.retry_after_s)
    if isinstance(error, QuotaUsedUp):
        more["x-should-retry"] = "false"  # openai's clients obey it
    if error.status == TooSlow.status:
        more["connection"] = "close"  # else the server would wait for the rest of the request
    return JSONResponse({**error_body(error), **(more_fields or {})}, error.status, more)


def error_body(error: ServeError) -> dict[str, dict[str, str | None]]:
    """Return an error's JSON.

    OpenAI's format has no field for the request's id. For server errors, which may have to be looked up in the log,
    it is part of the message.
    """
    current_account().error = error.code or error.type
    content, request_id = error.body(), REQUEST_ID.get()
    suffix = f" (request {request_id})" if error.status >= 500 and request_id else ""
    content["error"]["message"] = error.message[:MAX_MESSAGE] + suffix
    return content


def validation_error(error: ValidationError, given: Any) -> BadRequest:
    """Return pydantic's first relevant complaint about `given` as an error that names the field by its path."""
    if error.error_count() > MAX_FAULTS:  # listing them all takes too long
        return BadRequest(f"The request has {error.error_count()} faults.")
    return _first_problem(error.errors(include_url=False, include_context=False, include_input=False), given)


def unknown_field(param: str) -> BadRequest:
    """Return the error for an unknown field."""
    return BadRequest(
        f"{param[:MAX_QUOTE]} is not a known field here.", param=param[:MAX_QUOTE], code="unknown_parameter"
    )


def _first_problem(problems: Sequence[Mapping[str, Any]], given: Any) -> BadRequest:
    # Where a field may have several types, pydantic complains about each. The complaint that reaches deepest into the
    # request is about the type that was meant; of two at the same depth, the one that is not about the type.
    paths = [_path(problem["loc"], given) for problem in problems]
    meant = max(range(len(paths)), key=lambda at: (len(paths[at]), not _about_type(problems[at]["type"])))
    param, kind, message = _dotted(paths[meant]), problems[meant]["type"], problems[meant]["msg"]
    if kind == "json_invalid":
        return BadRequest("The body is not valid JSON.", code="invalid_json")
    if kind == "missing":
        return BadRequest(f"{param} is required.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return unknown_field(param)
    if kind == "unsupported_parameter":
        return BadRequest(f"{param} is not supported by this server.", param=param, code=kind)
    if kind in ("model_type", "model_attributes_type", "dict_type"):  # pydantic's message names our classes
        message = "Input should be an object"
    code = kind if kind == EXCEEDED else "invalid_type" if _about_type(kind) else "invalid_value"
    message = message.removeprefix("Value error, ")[:MAX_QUOTE]
    return BadRequest(f"{param or 'The body'}: {message}.", param=param or None, code=code)


def _about_type(kind: str) -> bool:
    return kind.endswith(("_type", "_parsing"))


def _path(loc: Sequence[str | int], given: Any) -> list[str | int]:
    """Return pydantic's location without the names of union members: only keys of the request."""
    path: list[str | int] = []
    for at, step in enumerate(loc):
        if isinstance(given, list) and isinstance(step, int) and step < len(given):
            given = given[step]
        elif isinstance(given, dict) and (step in given or (at == len(loc) - 1 and "[" not in str(step))):
            given = given.get(step)
        else:
            continue
        path.append(step)
    return path


def _dotted(path: Sequence[str | int]) -> str:
    """Return a path as text: ["messages", 0, "content"] -> "messages[0].content"."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).removeprefix(".")[:MAX_QUOTE]


async def _serve_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    return error_response(error)


async def _query_error(request: Request, error: Exception) -> JSONResponse:
    """Answer FastAPI's validation error. It is about query or path parameters, since bodies are parsed by us."""
    assert isinstance(error, RequestValidationError)
    problems = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]
    return error_response(_first_problem(problems, dict(request.query_params)))


async def _routing_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:MAX_QUOTE]
    answer: ServeError
    if error.status_code == 404:
        answer = NotFound(f"There is nothing at {path}.")
    elif error.status_code == 405:
        answer = NotAllowed(f"{path} does not take {request.method[:20]}.")
    else:  # Starlette's other errors are about the request, such as a broken multipart body
        answer = BadRequest(str(error.detail)[:MAX_QUOTE], code="invalid_request")
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # HeadRequests answers both
    return error_response(answer, headers)


async def _client_left(request: Request, error: Exception) -> Response:
    """Answer a request whose client disconnected. Nobody reads this; it sets the status in logs and metrics."""
    return Response(status_code=CLIENT_LEFT)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """Log a bug; the client gets a general message and the request id."""
    name = REQUEST_ID.get()
    log.error("request %s failed", name, exc_info=error)
    failed = ServeError("The server failed unexpectedly.", code="internal_error")
    return error_response(failed, {"x-request-id": name} if name else None)
