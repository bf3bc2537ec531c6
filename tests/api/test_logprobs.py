"""Log-probabilities: they match the text, are limited in number, and do not block the event loop."""

import asyncio
import json
import math
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, calling, frames, message, router, served

from serve.api.app import create_app
from serve.api.chat_completions.response import AT_ONCE, Choice, CompletionHead, ResponseMessage, slices, with_logprobs
from serve.api.responses import PIECE, PiecewiseJson
from serve.engines.base import Piece, Prompt, Token
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.tasks.reply import Usage
from serve.worker import Worker

PATH = "/v1/chat/completions"
REAL = "llava-1.5-7b"


def ask(model: str = LLAVA, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [message()], "logprobs": True, **more}


class TokenEngine(FakeEngine):
    """An engine that generates the given tokens, in one piece or one by one."""

    def __init__(self, texts: list[str], *, together: bool, logprob: float = -0.5, tops: int = 0) -> None:
        super().__init__()
        top = tuple((f"alternative {at}", -float(at)) for at in range(tops))
        self.tokens = tuple(Token(text, logprob, top) for text in texts)
        self.together = together

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        self.prompts.append(prompt)
        groups = [self.tokens] if self.together else [(token,) for token in self.tokens]
        for count, group in enumerate(groups, start=1):
            last = count == len(groups)
            yield Piece("".join(token.text for token in group), group, "stop" if last else None, 9, count)


TEXTS = [
    [" a", " red", " square"],
    ["na", "", "", "\u00efve"],  # a character of two byte tokens: the second has the text
    ["", "", "", "\U0001f468\u200d\U0001f469", " ", "\n"],
    ["<loc0001>", "<loc0002>", " cat", "</s>"],
    ["\u2028", '"', "\\", "\x00", "\x7f"],
]


@pytest.mark.parametrize("texts", TEXTS, ids=range(len(TEXTS)))
@pytest.mark.parametrize("together", [True, False])
async def test_tokens_and_bytes_add_up_to_the_text(texts: list[str], together: bool) -> None:
    async with calling(served(TokenEngine(texts, together=together))) as client:
        whole = (await client.post(PATH, json=ask(n=2, top_logprobs=2))).json()
        streamed = await client.post(PATH, json=ask(n=2, top_logprobs=2, stream=True))
    chunks = [json.loads(data)["choices"][0] for _, data in frames(streamed.text)[:-1]]
    for at in (0, 1):
        own = [chunk for chunk in chunks if chunk["index"] == at]
        streamed_tokens = [token for chunk in own if chunk["logprobs"] for token in chunk["logprobs"]["content"]]
        choice = whole["choices"][at]
        for content, tokens in (
            (choice["message"]["content"], choice["logprobs"]["content"]),
            ("".join(chunk["delta"].get("content", "") for chunk in own), streamed_tokens),
        ):
            assert content == "".join(texts) == "".join(token["token"] for token in tokens)
            assert bytes(byte for token in tokens for byte in token["bytes"]) == content.encode()
            assert len(tokens) == len(texts)


@pytest.mark.parametrize("logprob", [math.nan, -math.inf, -1e9])
async def test_logprob_that_json_lacks_becomes_minus_9999(logprob: float) -> None:
    async with calling(served(TokenEngine(["a"], together=True, logprob=logprob))) as client:
        (choice,) = (await client.post(PATH, json=ask())).json()["choices"]
    assert choice["logprobs"]["content"][0]["logprob"] == -9999.0


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"max_tokens": 4096, "top_logprobs": 20, "n": 2}, "top_logprobs"),
        ({"max_completion_tokens": 32_768, "top_logprobs": 3, "n": 8}, "top_logprobs"),
        ({"max_tokens": 2000, "top_logprobs": 7, "n": 7}, "top_logprobs"),
        ({"max_tokens": 4096, "top_logprobs": 20}, None),
        ({"max_tokens": 32_768, "top_logprobs": 20}, None),  # the model's context ends it sooner
        ({"max_tokens": 32_768, "n": 8}, None),
        ({"top_logprobs": 20, "n": 8}, None),
        ({"max_tokens": 32_768, "top_logprobs": 20, "n": 8, "model": LLAVA}, None),
        ({"max_tokens": 32_768, "n": 8, "logprobs": False}, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_too_many_log_probabilities_are_refused_before_the_engine_runs(
    more: dict[str, Any], param: str | None, stream: bool
) -> None:
    app_router, engine = router(), FakeEngine("red")
    app_router.routes[REAL] = worker = Worker(MODELS[REAL], engine)
    worker.mark("ready", "ready")
    async with calling(create_app(app_router)) as client:
        reply = await client.post(PATH, json=ask(REAL, stream=stream) | more)
    if param is None:
        assert reply.status_code == 200, reply.text
    else:
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
        assert not engine.prompts


async def test_engine_sends_log_probabilities_in_small_pieces() -> None:
    """Check that pieces are small: a large one would block the event loops of replica and gateway."""
    paligemma = FakeEngine("red")
    async with calling(served(None, paligemma)) as client:
        for logprobs, whole in ((True, False), (False, True)):
            await client.post(PATH, json=ask(PALIGEMMA) | {"logprobs": logprobs})
            assert paligemma.prompts[-1].whole is whole


@pytest.mark.slow
@pytest.mark.parametrize(("count", "top"), [(40_000, 0), (4000, 20), (1, 20), (0, 5)])
async def test_event_loop_runs_while_log_probabilities_are_encoded(count: int, top: int) -> None:
    tokens = [Token("word", -0.5, (("x", -1.0),) * top)] * count
    choices = [Choice(index=at, message=ResponseMessage(content="w"), finish_reason="stop") for at in range(2)]
    completion = CompletionHead("id", "model").completion(choices, Usage())
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(count_turns())
    parts = await with_logprobs(completion, choices, [tokens, tokens], top)
    beside.cancel()
    assert turns >= 2 * count * (1 + top) // (2 * AT_ONCE)
    whole = json.loads(b"".join(parts))
    assert [len(choice["logprobs"]["content"]) for choice in whole["choices"]] == [count, count]
    assert whole["id"] == "chatcmpl-id" and whole["usage"]["total_tokens"] == 0


def test_slices_hold_a_bounded_number() -> None:
    tokens = [Token("a", -0.1)] * 2500
    for top in (0, 1, 20, 2000):
        parts = list(slices(tokens, top))
        assert sum(map(len, parts)) == 2500
        assert max(map(len, parts)) * (1 + top) <= max(AT_ONCE, 1 + top)


async def test_large_piece_is_streamed_in_slices() -> None:
    texts = [f"{at} " for at in range(3 * AT_ONCE + 1)]
    async with calling(served(TokenEngine(texts, together=True))) as client:
        reply = await client.post(PATH, json=ask(stream=True))
    chunks = [json.loads(data)["choices"][0] for _, data in frames(reply.text)[:-1]]
    counts = [len(chunk["logprobs"]["content"]) for chunk in chunks if chunk["logprobs"]]
    assert counts == [AT_ONCE] * 3 + [1]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == "".join(texts)


@pytest.mark.parametrize("sizes", [[1], [PIECE], [PIECE + 1], [3 * PIECE, 5], [10] * 4])
async def test_response_is_written_in_pieces(sizes: list[int]) -> None:
    parts = [bytes([65 + at]) * size for at, size in enumerate(sizes)]
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    await PiecewiseJson(parts)({"type": "http"}, None, send)  # type: ignore[arg-type]
    assert dict(sent[0]["headers"])[b"content-length"] == str(sum(sizes)).encode()
    assert b"".join(message["body"] for message in sent[1:]) == b"".join(parts)
    assert max(len(message["body"]) for message in sent[1:]) <= PIECE
    assert [message["more_body"] for message in sent[1:]] == [True] * (len(sent) - 2) + [False]


@pytest.mark.parametrize("name", ["\ufffd", "\ufffd\ufffd", " \ufffd"])
async def test_alternative_that_is_half_a_character_has_no_bytes(name: str) -> None:
    engine = TokenEngine(["\u00e9", "\ufffd"], together=False)
    engine.tokens = tuple(Token(token.text, -0.5, (("\u00e9", -0.5), (name, -1.0))) for token in engine.tokens)
    async with calling(served(engine)) as client:
        (choice,) = (await client.post(PATH, json=ask(top_logprobs=2))).json()["choices"]
    for token in choice["logprobs"]["content"]:
        assert bytes(token["bytes"]) == token["token"].encode()
        assert [other["bytes"] for other in token["top_logprobs"]] == [[195, 169], None]
