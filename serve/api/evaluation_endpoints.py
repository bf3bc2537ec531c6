"""Evaluated runs for the page /evaluations: GET /v1/evaluations, GET /v1/evaluations/{name}."""

import asyncio
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from serve.api.evaluation_runs import Run, RunFolder
from serve.api.services import services
from serve.errors import NotFound

OFF = "There are no evaluations here: the operator names a folder for them by gateway.evaluations."


class RunList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Run]


def add_evaluations(api: APIRouter) -> None:
    """Add the routes, which answer 404 where there is no folder."""

    def opened(http: HttpRequest) -> RunFolder:
        folder = services(http).evaluations
        if folder is None:
            raise NotFound(OFF, code="evaluations_off")
        return folder

    @api.get("/v1/evaluations", tags=["evaluations"], summary="Scores and costs of evaluated runs, newest first")
    async def runs(http: HttpRequest) -> RunList:
        runs_kept = opened(http)
        async with services(http).reading_runs:
            return RunList(data=await asyncio.to_thread(runs_kept.runs))

    @api.get(
        "/v1/evaluations/{name}",
        tags=["evaluations"],
        summary="A run's answers with small pictures, as JSON lines",
        response_class=Response,
    )
    async def record(http: HttpRequest, name: str) -> Response:
        return FileResponse(await asyncio.to_thread(opened(http).record, name), media_type="application/x-ndjson")
