"""Evaluated runs for the page /evaluations: GET /v1/evaluations, GET /v1/evaluations/{name}."""

import asyncio
from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.responses import FileResponse, Response

from serve.api.evaluation_runs import Run, RunFolder
from serve.errors import NotFound

OFF = "There are no evaluations here: the operator names a folder for them by gateway.evaluations."


class RunList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Run]


def add_evaluations(app: FastAPI, folder: RunFolder | None) -> None:
    """Add the routes, which answer 404 where there is no folder."""
    reading = asyncio.Lock()  # one reads the folder at a time, however many ask

    def opened() -> RunFolder:
        if folder is None:
            raise NotFound(OFF, code="evaluations_off")
        return folder

    @app.get("/v1/evaluations", tags=["evaluations"], summary="Scores and costs of evaluated runs, newest first")
    async def runs() -> RunList:
        runs_kept = opened()
        async with reading:
            return RunList(data=await asyncio.to_thread(runs_kept.runs))

    @app.get(
        "/v1/evaluations/{name}",
        tags=["evaluations"],
        summary="A run's answers with small pictures, as JSON lines",
        response_class=Response,
    )
    async def record(name: str) -> Response:
        return FileResponse(await asyncio.to_thread(opened().record, name), media_type="application/x-ndjson")
