"""The routes that load and unload a LoRA adapter, as vLLM's own server has them. They need a key of the scope admin."""

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter
from pydantic import BaseModel, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse

from serve.api import openapi_schema
from serve.api.adapter_changes import AdapterChanges, LoadRequest, UnloadRequest
from serve.api.body import check_values, parse_body, parsed_or_none
from serve.api.error_responses import validation_error
from serve.api.services import services
from serve.errors import NotFound, Unavailable

OFF = "No adapters are loaded here: the operator allows it by gateway.adapters, a folder for them."
R = TypeVar("R", bound=BaseModel)


def add_adapters(api: APIRouter) -> None:
    """Add the routes, which answer 404 where the operator set no folder."""

    @api.post(
        "/v1/load_lora_adapter",
        tags=["adapters"],
        operation_id="load_lora_adapter",
        summary="Load a LoRA adapter, which is then a model",
        response_class=PlainTextResponse,
        openapi_extra=openapi_schema.json_body(LoadRequest),
    )
    async def load(http: HttpRequest) -> PlainTextResponse:
        changes = _opened(http)
        given = await parse_body(http, _parser(LoadRequest))
        try:
            await changes.load(given)
        except (OSError, ValueError) as error:
            raise _unavailable(error) from None
        return PlainTextResponse(f"Success: LoRA adapter '{given.lora_name}' added successfully.")

    @api.post(
        "/v1/unload_lora_adapter",
        tags=["adapters"],
        operation_id="unload_lora_adapter",
        summary="Unload a LoRA adapter",
        response_class=PlainTextResponse,
        openapi_extra=openapi_schema.json_body(UnloadRequest),
    )
    async def unload(http: HttpRequest) -> PlainTextResponse:
        changes = _opened(http)
        given = await parse_body(http, _parser(UnloadRequest))
        try:
            await changes.unload(given.lora_name)
        except (OSError, ValueError) as error:
            raise _unavailable(error) from None
        return PlainTextResponse(f"Success: LoRA adapter '{given.lora_name}' removed successfully.")


def _opened(http: HttpRequest) -> AdapterChanges:
    changes = services(http).adapters
    if changes is None:
        raise NotFound(OFF, code="adapters_off")
    return changes


def _parser(kind: type[R]) -> Callable[[bytes], R]:
    def parse(body: bytes) -> R:
        try:
            return kind.model_validate_json(check_values(body), strict=True)
        except ValidationError as error:
            raise validation_error(error, parsed_or_none(body)) from None

    return parse


def _unavailable(error: Exception) -> Unavailable:
    return Unavailable(f"Which adapters are loaded cannot be kept: {error}"[:200], code="adapters_unavailable")
