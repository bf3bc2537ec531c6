"""The routes of files and batches: /v1/files, /v1/batches."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import FileResponse, Response

from serve.api import openapi_schema
from serve.api.batches.runner import TASKS_PREFIX, BatchRunner
from serve.api.batches.store import ENDED, BatchObject, FileObject
from serve.api.body import parsed_form, read_json
from serve.api.error_responses import ErrorBody, unknown_field
from serve.api.services import services, set_up
from serve.errors import BadRequest, Conflict, Unavailable
from serve.tasks import TASKS

T = TypeVar("T")

OFF = "There are no files and batches here: the operator names a folder for them by gateway.batches."
ENDPOINTS = ("/v1/chat/completions", "/v1/responses")
WINDOW_S = 86_400.0
LONGEST_NAME = 256
PURPOSE = "batch"


class BatchRequest(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str = Field(max_length=200, description="A file of purpose batch.")
    endpoint: str = Field(
        max_length=200, description="/v1/chat/completions, /v1/responses or /v1/tasks/{task}: the url of every line."
    )
    completion_window: Literal["24h"]
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )


class FileForm(BaseModel):
    """A form with a file of JSON lines: {"custom_id", "method": "POST", "url", "body"}."""

    file: str = Field(json_schema_extra={"format": "binary"})
    purpose: Literal["batch"]


class FileList(BaseModel):
    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchList(BaseModel):
    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


def add_batches(api: APIRouter) -> None:
    """Add the routes, which answer 404 where there is no folder."""

    @api.post(
        "/v1/files",
        tags=["batches"],
        operation_id="create_file",
        summary="Keep a file of requests, for a batch",
        openapi_extra=openapi_schema.form_body(FileForm),
    )
    async def create_file(http: HttpRequest) -> FileObject:
        store = _opened(http).store
        if not http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise BadRequest("A file is sent as a form: multipart/form-data.", param="file")
        async with parsed_form(http) as form:
            upload = form.get("file")
            for name in form:
                if name not in FileForm.model_fields:
                    raise unknown_field(name)
            if not isinstance(upload, UploadFile):
                raise BadRequest("file is required, as a file.", param="file", code="missing_required_parameter")
            if form.get("purpose") != PURPOSE:
                raise BadRequest("purpose must be batch: files have no other use here.", param="purpose")
            name = (upload.filename or "file.jsonl")[:LONGEST_NAME]
            return await _stored(store.add_file, _owner(http), name, PURPOSE, await upload.read())

    @api.get("/v1/files", tags=["batches"], summary="The key's files")
    async def files(
        http: HttpRequest,
        purpose: Annotated[str | None, Query(max_length=64)] = None,
        after: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        order: Literal["asc", "desc"] = "desc",
    ) -> FileList:
        runner = _opened(http)
        page, more = await _stored(runner.store.files, _owner(http), purpose, after, limit, order == "desc")
        return FileList(data=page, has_more=more, first_id=_id(page, 0), last_id=_id(page, -1))

    @api.get("/v1/files/{file_id}", tags=["batches"], summary="About a file")
    async def file(http: HttpRequest, file_id: str) -> FileObject:
        return await _stored(_opened(http).store.file, _owner(http), file_id)

    @api.delete(
        "/v1/files/{file_id}", tags=["batches"], summary="Remove a file", responses=_conflict("A batch reads it.")
    )
    async def delete_file(http: HttpRequest, file_id: str) -> DeletedFile:
        await _stored(_opened(http).store.delete_file, _owner(http), file_id)
        return DeletedFile(id=file_id)

    @api.get("/v1/files/{file_id}/content", tags=["batches"], summary="A file's JSON lines", response_class=Response)
    async def content(http: HttpRequest, file_id: str) -> Response:
        path = await _stored(_opened(http).store.content, _owner(http), file_id)
        headers = {"x-content-type-options": "nosniff"}
        return FileResponse(path, media_type="application/x-ndjson", headers=headers)

    @api.post(
        "/v1/batches",
        tags=["batches"],
        operation_id="create_batch",
        summary="Answer a file of requests within a day, behind everybody who waits",
        openapi_extra=openapi_schema.json_body(BatchRequest),
    )
    async def create_batch(http: HttpRequest) -> BatchObject:
        runner = _opened(http)
        given = await read_json(http, BatchRequest)
        known = given.endpoint in ENDPOINTS or given.endpoint.removeprefix(TASKS_PREFIX) in TASKS
        if not known or given.endpoint in TASKS:
            raise BadRequest(f"endpoint must be {', '.join(ENDPOINTS)} or {TASKS_PREFIX}TASK.", param="endpoint")
        batch = await _stored(
            runner.store.add_batch, _owner(http), given.endpoint, given.input_file_id, WINDOW_S, given.metadata
        )
        runner.start()
        runner.wake()
        return batch

    @api.get("/v1/batches", tags=["batches"], summary="The key's batches, newest first")
    async def batches(
        http: HttpRequest,
        after: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> BatchList:
        page, more = await _stored(_opened(http).store.batches, _owner(http), after, limit)
        return BatchList(data=page, has_more=more, first_id=_id(page, 0), last_id=_id(page, -1))

    @api.get("/v1/batches/{batch_id}", tags=["batches"], summary="How far a batch is")
    async def batch(http: HttpRequest, batch_id: str) -> BatchObject:
        return await _stored(_opened(http).store.batch, _owner(http), batch_id)

    @api.post(
        "/v1/batches/{batch_id}/cancel",
        tags=["batches"],
        operation_id="cancel_batch",
        summary="Stop a batch; what was answered stays",
        responses=_conflict("The batch has ended."),
    )
    async def cancel(http: HttpRequest, batch_id: str) -> BatchObject:
        runner = _opened(http)
        cancelled = await _stored(runner.store.change, _owner(http), batch_id, _cancel)
        runner.wake()
        return cancelled


def _opened(http: HttpRequest) -> BatchRunner:
    return set_up(services(http).batches, OFF, "batches_off")


def _owner(http: HttpRequest) -> str:
    """Return the name of the request's key; empty where there are no keys."""
    return getattr(http.state, "key", None) or ""


async def _stored(call: Callable[..., T], *args: Any) -> T:
    """Return what a method of the store returns, called in a thread. Raises Unavailable where the folder is broken."""
    try:
        return await asyncio.to_thread(call, *args)
    except OSError as error:
        raise Unavailable(str(error)[:200], code="batches_unavailable") from None


def _cancel(batch: BatchObject) -> None:
    if batch.status in ENDED:
        raise Conflict(f"The batch has ended: it is {batch.status}.", param="batch_id")
    if batch.status != "cancelling":
        batch.enter("cancelling")


def _conflict(description: str) -> dict[int | str, dict[str, Any]]:
    """Describe the responses that an operation has beside the usual ones."""
    return {409: {"description": description, "model": ErrorBody}}


def _id(page: Sequence[FileObject | BatchObject], at: int) -> str | None:
    return page[at].id if page else None
