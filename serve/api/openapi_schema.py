"""Completes the OpenAPI document: request bodies, which FastAPI does not parse here, and the format of errors."""

import json
import threading
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from serve.api.error_responses import ErrorBody

VERSION = "0.1.0"
ABOUT = (
    "One picture, every model, side by side: ask vision-language models together, get their replies and one merged. "
    "Every path that answers GET answers HEAD as well, with the same status and headers and no body."
)
SCHEMA_REFERENCE = "#/components/schemas/{model}"
ERRORS = {
    "400": "The request is wrong; `param` names the field.",
    "401": "No API key, or one that is not known.",
    "403": "This key, or the page of another site, may not ask this.",
    "404": "No such model, task or path.",
    "405": "The path does not take this method.",
    "408": "The body did not arrive in time.",
    "413": "The body, its image or its video is too large.",
    "421": "The Host is no name of this server.",
    "429": "Too many wait already, or the key's share is used up; Retry-After says when to try again.",
    "431": "The headers are too large.",
    "500": "A bug: the log knows more under the reply's x-request-id.",
    "503": "No model could answer; Retry-After says when to try again.",
}
BODY_ONLY = ("408", "413", "429", "503")


def json_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe an operation with a JSON body of this class."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": _reference(kind)}}}}


def form_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe an operation with a form of this class."""
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": _reference(kind)}}}}


def task_body(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe an operation with a body of this class, as JSON or as a form with the image or video as a file."""
    operation = json_body(kind)
    file = {"type": "string", "format": "binary"}
    form = {"allOf": [_reference(kind)], "properties": {"image": file, "video": file}}
    operation["requestBody"]["content"]["multipart/form-data"] = {"schema": form}
    return operation


def json_or_events(kind: type[BaseModel]) -> dict[str, Any]:
    """Describe a response of this class, or server-sent events where `stream` is true."""
    return {
        "model": kind,
        "description": "The whole reply; with `stream: true` server-sent events that end with `data: [DONE]`.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }


def serve_schema(app: FastAPI, bodies: Sequence[type[BaseModel]], open_paths: Collection[str] | None = None) -> None:
    """Make `app` serve an OpenAPI document with these request bodies and our errors.

    open_paths: paths that need no key; None where there are no keys.
    """

    building = threading.Lock()
    written: dict[str, bytes] = {}

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            incomplete = get_openapi(
                title=app.title, version=app.version, description=app.description, routes=app.routes
            )
            app.openapi_schema = _complete(incomplete, bodies, open_paths)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False)
    def document(request: Request) -> Response:  # no coroutine, so it runs in a thread: the first call takes 0.3 s
        root = request.scope.get("root_path", "").rstrip("/")
        with building:
            if root not in written:
                servers = {"servers": [{"url": root}]} if root else {}
                written[root] = json.dumps({**app.openapi(), **servers}, separators=(",", ":")).encode()
        return Response(written[root], media_type="application/json")


def _complete(
    document: dict[str, Any], bodies: Sequence[type[BaseModel]], open_paths: Collection[str] | None
) -> dict[str, Any]:
    schemas = document["components"]["schemas"]
    kinds: list[type[BaseModel]] = [ErrorBody, *bodies]
    for kind in kinds:
        schema = kind.model_json_schema(ref_template=SCHEMA_REFERENCE)
        schemas.update(schema.pop("$defs", {}))
        schemas[kind.__name__] = schema
    for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's format of a 422, which is never sent
        schemas.pop(name, None)
    if open_paths is not None:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            keyed = open_paths is not None and path not in open_paths
            if keyed:
                operation["security"] = [{"key": []}]
            _errors(operation, keyed)
    document["components"]["schemas"] = dict(sorted(schemas.items()))
    return document


def _errors(operation: dict[str, Any], keyed: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for status, description in ERRORS.items():
        if status in BODY_ONLY and "requestBody" not in operation or status == "401" and not keyed:
            continue
        content = {"application/json": {"schema": {"$ref": SCHEMA_REFERENCE.format(model=ErrorBody.__name__)}}}
        responses.setdefault(status, {"description": description, "content": content})


def _reference(kind: type[BaseModel]) -> dict[str, str]:
    return {"$ref": SCHEMA_REFERENCE.format(model=kind.__name__)}
