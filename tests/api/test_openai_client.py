"""The unmodified openai package against a server: sync, async, streams, errors."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel
from served import LLAVA, PALIGEMMA, listening, message, picture, served, until

from serve.engines.fake import FakeEngine
from serve.limits import Limits

LLAVA_TEXT, PALIGEMMA_TEXT = "a red square", "red"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    def reply(prompt: Any) -> str:
        return '{"colour":"red"}' if prompt.sampling.json_schema else LLAVA_TEXT

    with listening(served(FakeEngine(reply, delay_s=0.002), FakeEngine(PALIGEMMA_TEXT))) as url:
        yield f"{url}/v1"


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as openai_client:
        yield openai_client


@pytest.fixture
async def waiting(address: str) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as openai_client:
        yield openai_client


def ask(model: str = LLAVA, **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [message()], **more}


def test_completion_has_content_and_usage(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask(max_completion_tokens=16, temperature=0, user="ann"))
    assert reply.choices[0].message.content == LLAVA_TEXT and reply.choices[0].finish_reason == "stop"
    assert reply.usage is not None and reply.usage.completion_tokens == 3
    assert reply.model_extra == {} and reply.choices[0].model_extra == {}  # nothing but OpenAI's own fields
    assert reply._request_id is not None and reply.id == f"chatcmpl-{reply._request_id}"


def test_stream_has_content_and_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(**ask(stream=True, stream_options={"include_usage": True})) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == LLAVA_TEXT
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 3


def test_choices_have_log_probabilities(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(**ask(n=2, logprobs=True, top_logprobs=1, seed=1))
    assert [choice.message.content for choice in reply.choices] == [LLAVA_TEXT] * 2
    logprobs = reply.choices[1].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert "".join(token.token for token in logprobs.content) == LLAVA_TEXT and logprobs.content[0].top_logprobs


def test_reply_is_parsed_by_the_client(client: openai.OpenAI) -> None:
    class Seen(BaseModel):
        colour: str

    reply = client.chat.completions.parse(**ask(response_format=Seen))
    assert reply.choices[0].message.parsed == Seen(colour="red")


def test_stream_helper_collects_the_completion(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**ask()) as stream:
        kinds = {event.type for event in stream}
        assert stream.get_final_completion().choices[0].message.content == LLAVA_TEXT
    assert "content.delta" in kinds


def test_reply_message_is_accepted_in_a_history(client: openai.OpenAI) -> None:
    reply_message = client.chat.completions.create(**ask("vqa")).choices[0].message
    history = [message(), reply_message, {"role": "user", "content": "sure?"}]
    reply = client.chat.completions.create(model="vqa", messages=history)  # type: ignore[arg-type, list-item]
    assert reply.choices[0].message.content == LLAVA_TEXT


def test_task_has_a_choice_for_each_model(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(**ask("vqa")).choices[0].message.content == LLAVA_TEXT
    reply = client.chat.completions.create(**ask("vqa:*", extra_body={"weights": {PALIGEMMA: 3}, "deadline_s": 30}))
    assert [choice.message.content for choice in reply.choices] == [PALIGEMMA_TEXT, LLAVA_TEXT, PALIGEMMA_TEXT]
    extras = [(choice.model_extra or {})["diptych"] for choice in reply.choices]
    assert [extra["model"] for extra in extras] == [None, LLAVA, PALIGEMMA]
    assert {extra["status"] for extra in extras} == {"ok"}


async def test_choices_of_a_task_stream_interleaved(waiting: openai.AsyncOpenAI) -> None:
    texts: dict[int, str] = {}
    order: list[int] = []
    async for chunk in await waiting.chat.completions.create(**ask("vqa:*", stream=True)):
        choice = chunk.choices[0]
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        order.append(choice.index)
    assert texts == {0: LLAVA_TEXT, 1: LLAVA_TEXT, 2: PALIGEMMA_TEXT}
    assert order[:3] == [0, 1, 2] and order[-2:] == [0, 0] and 0 not in order[3:-2]


@pytest.mark.parametrize(
    ("model", "more", "texts"),
    [
        ("caption:*", {}, [LLAVA_TEXT, LLAVA_TEXT, PALIGEMMA_TEXT]),
        (f"vqa:{PALIGEMMA},{LLAVA}", {"stop": ["blue"]}, [LLAVA_TEXT, LLAVA_TEXT, PALIGEMMA_TEXT]),
        ("vqa", {}, [LLAVA_TEXT]),
        (LLAVA, {"n": 2, "seed": 1}, [LLAVA_TEXT] * 2),
        (PALIGEMMA, {"n": 5}, [PALIGEMMA_TEXT] * 5),
    ],
)
async def test_stream_helper_collects_several_choices(
    client: openai.OpenAI, waiting: openai.AsyncOpenAI, model: str, more: dict[str, Any], texts: list[str]
) -> None:
    given = ask(model, **more)
    with client.chat.completions.stream(**given, stream_options={"include_usage": True}) as stream:
        done = [event.content for event in stream if event.type == "content.done"]
        whole = stream.get_final_completion()
    async with waiting.chat.completions.stream(**given) as other:
        async for _ in other:
            pass
        awaited = await other.get_final_completion()
    for completion in (whole, awaited):
        assert [choice.message.content for choice in completion.choices] == texts
        assert [choice.index for choice in completion.choices] == list(range(len(texts)))
        assert {choice.finish_reason for choice in completion.choices} == {"stop"}
    assert sorted(done) == sorted(texts)
    assert whole.usage is not None and whole.usage.completion_tokens > 0


async def test_stream_helper_collects_log_probabilities_and_parses(
    client: openai.OpenAI, waiting: openai.AsyncOpenAI
) -> None:
    class Seen(BaseModel):
        colour: str

    with client.chat.completions.stream(**ask(n=2, logprobs=True, top_logprobs=1)) as stream:
        for choice in stream.until_done().get_final_completion().choices:
            assert choice.logprobs is not None and choice.logprobs.content is not None
            assert "".join(token.token for token in choice.logprobs.content) == LLAVA_TEXT
    async with waiting.chat.completions.stream(**ask(n=3, response_format=Seen)) as parsed:
        whole = await parsed.get_final_completion()
        assert [choice.message.parsed for choice in whole.choices] == [Seen(colour="red")] * 3


async def test_concurrent_completions_are_answered(waiting: openai.AsyncOpenAI) -> None:
    replies = await asyncio.gather(*(waiting.chat.completions.create(**ask(model)) for model in [LLAVA, PALIGEMMA] * 8))
    assert [reply.choices[0].message.content for reply in replies] == [LLAVA_TEXT, PALIGEMMA_TEXT] * 8


def test_models_are_listed(client: openai.OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert names[:3] == [LLAVA, PALIGEMMA, "vqa"]
    model = client.models.retrieve(LLAVA)
    assert model.owned_by == "Diptych" and (model.model_extra or {})["diptych"]["kind"] == "model"
    about = model.model_extra or {}
    assert (about["root"], about["parent"], about["max_model_len"]) == (LLAVA, None, 512)
    assert (client.models.retrieve("detect").model_extra or {})["max_model_len"] == 512


def test_an_image_url_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=LLAVA, messages=[message(image="https://x.org/a.png")])  # type: ignore[list-item]
    error = caught.value
    assert (error.code, error.param) == ("invalid_image_url", "messages[0].content[0].image_url")
    assert error.type == "invalid_request_error" and error.request_id


def test_errors_become_the_exceptions_of_the_client(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(**ask("nobody"))
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(**ask(tools=[{"type": "function", "function": {"name": "f"}}]))
    assert tools.value.param == "tools"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=LLAVA, input="x")
    with pytest.raises(openai.APIStatusError) as large:
        client.post("/chat/completions", cast_to=object, body={"model": "x" * (Limits().max_body + 1)})
    assert large.value.status_code == 413


def test_starting_model_is_503_with_retry_after() -> None:
    app = served(ready=False)
    with listening(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        for more in ({}, {"stream": True}):
            with pytest.raises(openai.InternalServerError) as caught:
                client.chat.completions.create(**ask("vqa", **more))
            assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"]


def test_failing_stream_raises_in_the_client() -> None:
    app = served(FakeEngine("a b c", fail_after=2))
    with listening(app) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(**ask(stream=True))
        with pytest.raises(openai.APIError) as caught:
            list(stream)
        assert caught.value.code == "model_error"


def test_closing_a_stream_stops_the_models() -> None:
    engines = [FakeEngine("word " * 2000, delay_s=0.005) for _ in range(2)]
    with listening(served(*engines)) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        with client.chat.completions.create(**ask("vqa:*", stream=True, max_tokens=2000)) as stream:
            next(iter(stream))
        assert until(lambda: not any(engine.speaking for engine in engines), 0.5)
    assert [engine.aborted for engine in engines] == [1, 1]


def test_task_route_is_reached_by_a_raw_call(client: openai.OpenAI) -> None:
    reply: Any = client.post(
        "/tasks/vqa",
        cast_to=object,
        body={"question": "what?"},
        files={"image": picture()},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    )
    assert json.loads(json.dumps(reply))["merged"]["result"] == {"answer": LLAVA_TEXT}
