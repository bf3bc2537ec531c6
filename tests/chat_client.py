"""Chat completions as tests ask for them: a body, the reply, a stream's chunks, a refusal."""

import json
from typing import Any

import httpx
from served import LLAVA, calling, frames, message, plain, served

from serve.engines.fake import FakeEngine

PATH = "/v1/chat/completions"


def body(model: str = LLAVA, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [message()], **more}


async def complete(given: dict[str, Any], llava: FakeEngine | None = None, paligemma: FakeEngine | None = None) -> Any:
    async with calling(served(llava, paligemma) if llava or paligemma else plain()) as client:
        return await client.post(PATH, json=given)


async def chunks(given: dict[str, Any], *engines: FakeEngine) -> list[dict[str, Any]]:
    reply = await complete(given | {"stream": True}, *engines)
    assert reply.status_code == 200, reply.text
    events = frames(reply.text)
    assert events[-1] == (None, "[DONE]")
    return [json.loads(data) for _, data in events[:-1]]


def refused(reply: httpx.Response, param: str | None, code: str | None = None, status: int = 400) -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param), error
    assert code is None or error["code"] == code
