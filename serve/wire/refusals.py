"""Errors as HTTP replies, always in OpenAI's shape. Every error becomes a reply here and nowhere else."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serve.errors import BadRequest, NotFound, ServeError, TooSlow
from serve.request_id import REQUEST_ID
from serve.wire.client import ClientGone

log = logging.getLogger(__name__)

ECHO = 200
"""At most so many characters of what a client sent come back to it."""
MAX_MESSAGE = 1000
MAX_FAULTS = 1000
RETRY_AFTER_S = 2
"""Clients such as openai-python retry these by themselves, at once where no Retry-After asks for patience."""
LEFT = 499
"""What a request is closed with whose client has left: never sent, and counted by itself."""
LATER = (429, 503)


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """Every error, on every route."""

    error: ErrorDetail


class NotAllowed(ServeError):
    """The path exists, but not with this method."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


def install(app: FastAPI) -> None:
    """Make `app` answer every error in OpenAI's shape."""
    app.add_exception_handler(ServeError, _told)
    app.add_exception_handler(RequestValidationError, _query)
    app.add_exception_handler(HTTPException, _routing)
    app.add_exception_handler(ClientGone, _nobody)
    app.add_exception_handler(ClientDisconnect, _nobody)
    app.add_exception_handler(Exception, _bug)


def reply(error: ServeError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as its HTTP reply."""
    more = dict(headers or {})
    if error.status in LATER:
        more.setdefault("retry-after", str(RETRY_AFTER_S))
    if error.status == TooSlow.status:
        more["connection"] = "close"  # what is still to come of it would be waited for as if it mattered
    return JSONResponse(body(error), error.status, more)


def body(error: ServeError) -> dict[str, dict[str, str | None]]:
    """An error's JSON. OpenAI's shape has no place for the request's id but the message: there it stands where the
    fault is ours, and somebody may have to look for it."""
    told, request_id = error.body(), REQUEST_ID.get()
    whose = f" (request {request_id})" if error.status >= 500 and request_id else ""
    told["error"]["message"] = error.message[:MAX_MESSAGE] + whose
    return told


def refusal(error: ValidationError, given: Any) -> BadRequest:
    """What pydantic found wrong with `given`, as one error that names the field by its path in the request."""
    if error.error_count() > MAX_FAULTS:  # to write them all down, only to tell of one, takes longer than the rest
        return BadRequest(f"The request has {error.error_count()} faults.")
    return _refusal(error.errors(include_url=False, include_context=False, include_input=False), given)


def unknown(param: str) -> BadRequest:
    """The refusal of a field that nobody knows."""
    return BadRequest(f"{param[:ECHO]} is not a known field here.", param=param[:ECHO], code="unknown_parameter")


def _refusal(problems: Sequence[Mapping[str, Any]], given: Any) -> BadRequest:
    # Where a field may have several forms pydantic complains about each. The complaint that reaches deepest into the
    # request is about the form that was meant; of two as deep, the one that at least found the right type.
    paths = [_path(problem["loc"], given) for problem in problems]
    meant = max(range(len(paths)), key=lambda at: (len(paths[at]), not _about_type(problems[at]["type"])))
    param, kind, words = _written(paths[meant]), problems[meant]["type"], problems[meant]["msg"]
    if kind == "json_invalid":
        return BadRequest("The body is not valid JSON.", code="invalid_json")
    if kind == "missing":
        return BadRequest(f"{param} is required.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return unknown(param)
    if kind == "unsupported_parameter":
        return BadRequest(f"{param} is not supported by this server.", param=param, code=kind)
    code = "invalid_type" if _about_type(kind) else "invalid_value"
    words = words.removeprefix("Value error, ")[:ECHO]
    return BadRequest(f"{param or 'The body'}: {words}.", param=param or None, code=code)


def _about_type(kind: str) -> bool:
    return kind.endswith(("_type", "_parsing"))


def _path(loc: Sequence[str | int], given: Any) -> list[str | int]:
    """pydantic's location without the names it gives to the forms a field may have: only what the request holds."""
    path: list[str | int] = []
    for at, step in enumerate(loc):
        if isinstance(given, list) and isinstance(step, int) and step < len(given):
            given = given[step]
        elif isinstance(given, dict) and (step in given or at == len(loc) - 1):
            given = given.get(step)
        else:
            continue
        path.append(step)
    return path


def _written(path: Sequence[str | int]) -> str:
    """["messages", 0, "content"] -> "messages[0].content"."""
    steps = [f"[{step}]" if isinstance(step, int) else f".{step}" for step in path]
    return "".join(steps).removeprefix(".")[:ECHO]


async def _told(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServeError)
    return reply(error)


async def _query(request: Request, error: Exception) -> JSONResponse:
    """FastAPI's own complaint, which only query and path parameters can cause: bodies are read by us."""
    assert isinstance(error, RequestValidationError)
    problems = [{**problem, "loc": problem["loc"][1:]} for problem in error.errors()]
    return reply(_refusal(problems, dict(request.query_params)))


async def _routing(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = request.scope["path"][:ECHO]
    told: ServeError
    if error.status_code == 404:
        told = NotFound(f"There is nothing at {path}.")
    elif error.status_code == 405:
        told = NotAllowed(f"{path} does not take {request.method[:20]}.")
    else:  # Starlette's remaining ones are complaints about the request, such as a broken multipart body
        told = BadRequest(str(error.detail)[:ECHO], code="invalid_request")
    headers = dict(error.headers or {})
    if headers.get("Allow") == "GET":
        headers["Allow"] = "GET, HEAD"  # Head answers both
    return reply(told, headers)


async def _nobody(request: Request, error: Exception) -> Response:
    """The client left: nobody reads this, but logs and metrics should not call it a success."""
    return Response(status_code=LEFT)


async def _bug(request: Request, error: Exception) -> JSONResponse:
    """A bug: the log tells it whole, the client a neutral sentence and the id to ask about."""
    name = REQUEST_ID.get()
    log.error("request %s failed", name, exc_info=error)
    told = ServeError("The server failed unexpectedly.", code="internal_error")
    return reply(told, {"x-request-id": name} if name else None)
