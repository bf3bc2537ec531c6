"""Requests as tests of the API send them, and the error of a reply, whose shape is checked."""

from typing import Any

import httpx
from served import URL, calling, plain

VQA = {"image": URL, "question": "what colour?"}


async def post(path: str, body: Any = None, app: Any = None, **more: Any) -> httpx.Response:
    async with calling(app or plain()) as client:
        return await client.post(path, json=body, **more) if body is not None else await client.post(path, **more)


async def get(path: str, app: Any = None, **more: Any) -> httpx.Response:
    async with calling(app or plain()) as client:
        return await client.get(path, **more)


def error(reply: httpx.Response) -> dict[str, Any]:
    body = reply.json()
    assert list(body) == ["error"]
    assert list(body["error"]) == ["message", "type", "param", "code"]
    assert isinstance(body["error"]["message"], str)
    assert body["error"]["code"] is None or isinstance(body["error"]["code"], str)
    fields: dict[str, Any] = body["error"]
    return fields
