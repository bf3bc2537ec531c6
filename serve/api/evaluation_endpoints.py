"""Evaluated runs for the page /evaluations, and evaluations that are started there, where the operator allows it."""

import asyncio
from typing import Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from serve.api import openapi_schema
from serve.api.body import read_json
from serve.api.evaluation_runs import Run, RunFolder
from serve.api.evaluation_starts import Bounds, Caller, StartedRun, StartRequest, Starts
from serve.api.services import services, set_up
from serve.errors import BadRequest
from serve.tasks import TASKS

OFF = "There are no evaluations here: the operator names a folder for them by gateway.evaluations."
STARTS_OFF = "Evaluations are not started here: the operator allows it by gateway.evaluations_mb."
UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class RunList(BaseModel):
    """The kept runs, those that were started here, and what such a one may take; null where none may be started."""

    object: Literal["list"] = "list"
    data: list[Run]
    started: list[StartedRun] = []
    bounds: Bounds | None = Field(default=None)


def add_evaluations(api: APIRouter) -> None:
    """Add the routes, which answer 404 where there is no folder."""

    def opened(http: HttpRequest) -> RunFolder:
        return set_up(services(http).evaluations, OFF, "evaluations_off")

    def starts(http: HttpRequest) -> Starts:
        return set_up(opened(http).starts, STARTS_OFF, "evaluations_not_started")

    @api.get("/v1/evaluations", tags=["evaluations"], summary="Scores and costs of evaluated runs, newest first")
    async def runs(http: HttpRequest) -> RunList:
        folder = opened(http)
        async with services(http).reading_runs:
            kept = await asyncio.to_thread(folder.runs)
            if folder.starts is None:
                return RunList(data=kept)
            started = await asyncio.to_thread(folder.starts.started)
        return RunList(data=kept, started=started, bounds=folder.starts.bounds)

    @api.post(
        "/v1/evaluations",
        tags=["evaluations"],
        summary="Begin an evaluation, whose labelled folder is sent next",
        openapi_extra=openapi_schema.json_body(StartRequest),
    )
    async def start(http: HttpRequest) -> StartedRun:
        allowed = starts(http)
        given = await read_json(http, StartRequest)
        if given.task not in (*TASKS, "all"):
            raise BadRequest(
                f"There is no task {given.task[:100]!r}: take one of {', '.join(TASKS)}, or all.", param="task"
            )
        served = services(http).router.routes
        if unknown := [name for name in given.models or () if name not in served]:
            raise BadRequest(f"Not served here: {', '.join(unknown)[:200]}.", param="models", code="model_not_found")
        return await asyncio.to_thread(allowed.create, given, _key(http))

    @api.put(
        "/v1/evaluations/{name}",
        tags=["evaluations"],
        summary="Send the next piece of its zip file; the last one starts it",
        openapi_extra=UPLOAD,
    )
    async def receive(http: HttpRequest, name: str, offset: int = Query(ge=0)) -> StartedRun:
        allowed = starts(http)
        piece = await http.body()
        if not piece:
            raise BadRequest("The piece is empty.", param="offset")
        run = await asyncio.to_thread(allowed.append, name, _key(http), offset, piece)
        return run if run.received < run.size else await allowed.begin(run, _caller(http))

    @api.delete("/v1/evaluations/{name}", tags=["evaluations"], summary="Cancel a started evaluation")
    async def cancel(http: HttpRequest, name: str) -> StartedRun:
        return await asyncio.to_thread(starts(http).cancel, name, _key(http))

    @api.get(
        "/v1/evaluations/{name}",
        tags=["evaluations"],
        summary="A run's answers with small pictures, as JSON lines",
        response_class=Response,
    )
    async def record(http: HttpRequest, name: str) -> Response:
        return FileResponse(await asyncio.to_thread(opened(http).record, name), media_type="application/x-ndjson")


def _key(http: HttpRequest) -> str | None:
    name: str | None = http.scope["state"].get("key")
    return name


def _caller(http: HttpRequest) -> Caller:
    """Return how the evaluation reaches this server: as the request did, with the same key."""
    host, port = http.scope["server"]
    address = f"[{host}]" if ":" in host else host
    scheme, _, key = http.headers.get("authorization", "").partition(" ")
    return Caller(
        server=f"http://{address}:{port}{http.scope.get('root_path', '')}",
        host=http.headers.get("host"),
        api_key=key if scheme.lower() == "bearer" else None,
    )
