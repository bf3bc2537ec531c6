"""The routes that load and unload a LoRA adapter, as vLLM's own server has them. They need a key of the scope admin."""

import contextlib
from collections.abc import Iterator

from fastapi import APIRouter
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse

from serve.api import openapi_schema
from serve.api.adapter_changes import AdapterChanges, LoadRequest, UnloadRequest
from serve.api.body import read_json
from serve.api.services import services, set_up
from serve.errors import Unavailable

OFF = "No adapters are loaded here: the operator allows it by gateway.adapters, a folder for them."


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
        given = await read_json(http, LoadRequest)
        with _kept():
            await changes.load(given)
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
        given = await read_json(http, UnloadRequest)
        with _kept():
            await changes.unload(given.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{given.lora_name}' removed successfully.")


def _opened(http: HttpRequest) -> AdapterChanges:
    return set_up(services(http).adapters, OFF, "adapters_off")


@contextlib.contextmanager
def _kept() -> Iterator[None]:
    """Raise Unavailable where the file that keeps which adapters are loaded cannot be used."""
    try:
        yield
    except (OSError, ValueError) as error:
        why = f"Which adapters are loaded cannot be kept: {error}"[:200]
        raise Unavailable(why, code="adapters_unavailable") from None
