"""Shared results: POST /v1/results keeps one, GET /v1/results/{id} returns it; its pictures are beside it."""

import asyncio
import io
import json
from typing import Any

import PIL.Image
import PIL.ImageOps
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.api import openapi_schema
from serve.api.body import read_json
from serve.api.error_responses import validation_error
from serve.api.media_loader import check_pixels
from serve.api.result_card import draw_card
from serve.api.services import services, set_up
from serve.api.shared_results import ResultFile, SharedResult
from serve.api.task_endpoint import TaskAnswer, answer_schema
from serve.errors import BadRequest, Overloaded, TooLarge, Unavailable
from serve.media.image import image_from_url
from serve.tasks import TASKS

OFF = "Results are not shared here: the operator allows it by gateway.results, a file for them."
MAX_ANSWER = 2 * 2**20
"""Bytes of a result's answers."""
SIDE = 1600
"""Longest side of the picture that is kept, in pixels."""
AT_ONCE = 8
"""Results that may wait to be drawn; more are refused."""


class ShareRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    answer: dict[str, Any] = Field(description="As POST /v1/tasks/{task} returned it.")
    image: str = Field(description="The image that was asked about, as a data URL.")
    question: str = Field(default="", max_length=2000, description="What was asked: a question, or phrases.")


class Shared(BaseModel):
    """A result that is kept. path: of its page, beside which `.png` is the picture with the answers."""

    id: str
    object: str = "diptych.shared"
    path: str
    delete_token: str = Field(description="Deletes it: DELETE /r/{id} with this as the header x-delete-token.")
    expires: float = Field(description="Unix time in seconds.")


class DeletedResult(BaseModel):
    id: str
    object: str = "diptych.shared.deleted"
    deleted: bool = True


class SharedAnswer(BaseModel):
    """A shared result, without its image."""

    id: str
    object: str = "diptych.result"
    question: str
    answer: TaskAnswer
    expires: float


def add_results(api: APIRouter) -> None:
    """Add the routes, which answer 404 where there is no file."""

    def opened(http: HttpRequest) -> ResultFile:
        return set_up(services(http).results, OFF, "results_off")

    async def read_result(http: HttpRequest, result: str) -> SharedResult:
        try:
            return await asyncio.to_thread(opened(http).find, result[:100])
        except OSError as error:
            raise Unavailable(str(error), code="results_unavailable") from None

    @api.post(
        "/v1/results",
        tags=["results"],
        summary="Share a result by an address of its own",
        openapi_extra=openapi_schema.json_body(ShareRequest),
    )
    async def share(http: HttpRequest) -> Shared:
        file, shared = opened(http), services(http)
        given = await read_json(http, ShareRequest)
        answer = _checked_answer(given.answer)
        image = image_from_url(given.image, "image")
        if image.url is not None:
            raise BadRequest("image must be a data URL.", param="image")
        check_pixels(image)
        if shared.drawings >= AT_ONCE:
            raise Overloaded("Too many results are being shared: try again.")
        shared.drawings += 1
        try:
            async with shared.drawing, shared.media.decoder.decode_image(image, 30):
                if (image.width, image.height) != (answer.image.width, answer.image.height):
                    raise BadRequest("The answer is about an image of another size.", param="answer.image")
                picture, card = await asyncio.to_thread(_drawn, image.pil(), given.question, answer)
            body = f'{{"question":{json.dumps(given.question)},"answer":{answer.model_dump_json()}}}'.encode()
            ticket = await asyncio.to_thread(file.add, body, picture, card, http.scope["state"].get("key"))
        except OSError as error:
            raise Unavailable(str(error), code="results_unavailable") from None
        finally:
            shared.drawings -= 1
        return Shared(id=ticket.id, path=f"r/{ticket.id}", delete_token=ticket.token, expires=ticket.expires)

    @api.get(
        "/v1/results/{result}",
        tags=["results"],
        summary="A shared result, without its image",
        response_class=Response,
        responses={200: {"model": SharedAnswer}},
    )
    async def read(http: HttpRequest, result: str) -> Response:
        kept = await read_result(http, result)
        head = json.dumps({"id": result, "object": "diptych.result", "expires": kept.expires})
        return Response(head[:-1].encode() + b"," + kept.answer[1:], media_type="application/json")

    @api.get("/v1/results/{result}/image", tags=["results"], summary="Its image", response_class=Response)
    async def picture(http: HttpRequest, result: str) -> Response:
        return _file((await read_result(http, result)).picture, "image/webp")

    @api.get("/r/{result}.png", tags=["results"], summary="Its image with all answers", response_class=Response)
    async def card(http: HttpRequest, result: str) -> Response:
        return _file((await read_result(http, result)).card, "image/png")

    @api.delete("/r/{result}", tags=["results"], summary="Delete a shared result")
    async def delete(http: HttpRequest, result: str) -> DeletedResult:
        """Delete a result, for the key that shared it or with the header `x-delete-token`."""
        key, token = http.scope["state"].get("key"), http.headers.get("x-delete-token")
        try:
            await asyncio.to_thread(opened(http).delete, result[:100], key, token)
        except OSError as error:
            raise Unavailable(str(error), code="results_unavailable") from None
        return DeletedResult(id=result)


def _file(data: bytes, kind: str) -> Response:
    headers = {"x-content-type-options": "nosniff", "cache-control": "public, max-age=3600"}
    return Response(data, media_type=kind, headers=headers)


def _checked_answer(answer: dict[str, Any]) -> TaskAnswer:
    task = answer.get("task")
    if not isinstance(task, str) or task not in TASKS:
        raise BadRequest("answer.task is no task of this server.", param="answer.task")
    try:
        checked = answer_schema(task).model_validate({name: answer[name] for name in answer if name != "asked"})
    except ValidationError as error:
        raise validation_error(error, answer) from None
    if len(checked.model_dump_json()) > MAX_ANSWER:
        raise TooLarge(f"The answer is larger than {MAX_ANSWER >> 20} MiB.", param="answer")
    return checked


def _drawn(picture: PIL.Image.Image, question: str, answer: TaskAnswer) -> tuple[bytes, bytes]:
    """Return the picture made small, as WEBP, and the card. Called in a thread, one at a time."""
    try:
        card = draw_card(picture, question, answer.model_dump(mode="json"))
    except (ValueError, OverflowError):
        raise BadRequest("The answer has a place that cannot be drawn.", param="answer") from None
    kept = PIL.ImageOps.contain(picture, (SIDE, SIDE)) if max(picture.size) > SIDE else picture
    out = io.BytesIO()
    kept.save(out, "WEBP", quality=80, method=2)
    return out.getvalue(), card
