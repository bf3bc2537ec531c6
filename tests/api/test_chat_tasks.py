"""Chat completions whose model is a task: merged, each reply as a choice, whole and streamed."""

import pytest
from chat_client import body, chunks, complete, refused
from served import LLAVA, PALIGEMMA, URL, message

from serve.engines.fake import FakeEngine


async def test_task_returns_the_merged_reply() -> None:
    reply = (await complete(body("vqa"), FakeEngine("a red square"), FakeEngine("red"))).json()
    assert len(reply["choices"]) == 1
    choice = reply["choices"][0]
    assert choice["message"]["content"] == "a red square" and choice["finish_reason"] == "stop"
    about = choice["diptych"]
    assert about["model"] is None and about["status"] == "ok" and about["method"] == "vote"
    assert about["models"] == [LLAVA, PALIGEMMA] and about["result"] == {"answer": "a red square"}
    assert reply["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("names", ["*", f"{PALIGEMMA},{LLAVA}", f" {LLAVA} , {PALIGEMMA} "])
async def test_task_with_models_returns_each_reply(names: str) -> None:
    reply = (await complete(body(f"vqa:{names}"), FakeEngine("a red square", fail_after=2), FakeEngine("red"))).json()
    first, second, third = reply["choices"]
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert first["message"]["content"] == "red"
    assert second["message"]["content"] == "a red " and second["finish_reason"] == "stop"
    assert second["diptych"]["model"] == LLAVA and second["diptych"]["status"] == "error"
    assert second["diptych"]["error"]["code"] == "model_error" and "text" not in second["diptych"]
    assert third["diptych"]["model"] == PALIGEMMA and third["diptych"]["result"] == {"answer": "red"}


async def test_task_with_a_single_model_has_two_choices() -> None:
    reply = (await complete(body(f"vqa:{PALIGEMMA}"))).json()
    assert [choice["diptych"]["model"] for choice in reply["choices"]] == [None, PALIGEMMA]


async def test_replies_stream_interleaved_and_the_merged_reply_comes_last() -> None:
    slow, fast = FakeEngine("a red square", delay_s=0.02), FakeEngine("red", first_delay_s=0.03)
    sent = await chunks(body("vqa:*", stream_options={"include_usage": True}), slow, fast)
    choices = [chunk["choices"][0] for chunk in sent[:-1]]
    indexes = [choice["index"] for choice in choices]
    assert indexes[:3] == [0, 1, 2]  # announced in order, before any text
    of_models = indexes[3:-2]
    assert indexes[-2:] == [0, 0] and set(of_models) == {1, 2}
    assert of_models not in ([1] * 4 + [2] * 2, [2] * 2 + [1] * 4)  # interleaved
    texts = {at: "".join(c["delta"].get("content", "") for c in choices if c["index"] == at) for at in (0, 1, 2)}
    assert texts == {0: "a red square", 1: "a red square", 2: "red"}
    for at in (0, 1, 2):
        own = [choice for choice in choices if choice["index"] == at]
        assert own[0]["delta"]["role"] == "assistant" and own[0]["diptych"]["status"] == "speaking"
        assert [choice["finish_reason"] for choice in own] == [None] * (len(own) - 1) + ["stop"]
        assert own[-1]["diptych"]["status"] == "ok"
    assert sent[-1]["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("model", ["vqa", "vqa:*"])
async def test_choice_of_models_that_disagree_says_so(model: str) -> None:
    engines = FakeEngine("red"), FakeEngine("blue")
    given = body(model, min_agreement=0.9)
    whole = (await complete(given, *engines)).json()["choices"]
    streamed = [chunk["choices"][0] for chunk in await chunks(given, *engines)]
    texts = [
        "".join(choice["delta"].get("content", "") for choice in streamed if choice["index"] == at)
        for at in range(len(whole))
    ]
    assert texts == [choice["message"]["content"] for choice in whole]
    assert texts == ["The models disagree.", "red", "blue"][: len(whole)]
    for first in (whole[0], streamed[-1]):
        assert first["index"] == 0 and first["finish_reason"] == "stop" and first["diptych"]["result"] is None
        assert (first["diptych"]["status"], first["diptych"]["error"]["code"]) == ("error", "models_disagree")


@pytest.mark.slow
async def test_choices_are_announced_in_order_before_any_text() -> None:
    quick, slow = FakeEngine("red"), FakeEngine("a red square", first_delay_s=0.05)
    every = [None, LLAVA, PALIGEMMA]
    for given, engines, models in (
        (body("vqa:*"), (slow, quick), every),  # the second model answers first
        (body("caption:*"), (slow, quick), every),
        (body(f"caption:{PALIGEMMA},{LLAVA}"), (slow, quick), every),  # catalogue order, not the request's
        (body("caption:*"), (FakeEngine("a", first_delay_s=0.05), FakeEngine("b", fail_after=0)), every),
        (body("vqa"), (slow, quick), [None]),
    ):
        choices = [chunk["choices"][0] for chunk in await chunks(given, *engines)]
        opening, later = choices[: len(models)], choices[len(models) :]
        assert [choice["index"] for choice in opening] == list(range(len(models)))
        assert all(choice["delta"] == {"role": "assistant", "content": ""} for choice in opening)
        assert [choice.get("diptych", {}).get("model") for choice in opening] == models
        assert not any("role" in choice["delta"] for choice in later)  # none is announced twice


async def test_failed_choice_is_closed_and_others_continue() -> None:
    sent = await chunks(body("vqa:*"), FakeEngine("a b", fail_after=1), FakeEngine("red", first_delay_s=0.02))
    choices = [chunk["choices"][0] for chunk in sent]
    closing = {choice["index"]: choice for choice in choices if choice["finish_reason"]}
    assert closing[1]["finish_reason"] == "stop" and closing[1]["diptych"]["status"] == "error"
    assert closing[2]["diptych"]["status"] == closing[0]["diptych"]["status"] == "ok"


async def test_task_without_models_streams_a_single_choice() -> None:
    sent = await chunks(body("vqa"), FakeEngine("a red square"), FakeEngine("red"))
    assert [chunk["choices"][0]["delta"] for chunk in sent] == [
        {"role": "assistant", "content": ""},
        {"content": "a red square"},
        {},
    ]


async def test_stream_without_any_answer_ends_with_an_error() -> None:
    sent = await chunks(body("vqa:*"), FakeEngine("a b", fail_after=1), FakeEngine("a b", fail_after=1))
    assert sent[-1]["error"]["code"] == "no_model_answered"
    refused(
        await complete(body("vqa", stream=True), FakeEngine(fail_after=0), FakeEngine(fail_after=0)),
        None,
        "no_model_answered",
        503,
    )


async def test_phrases_are_split_at_commas_and_semicolons() -> None:
    paligemma = FakeEngine("")
    reply = await complete(body("detect") | {"messages": [message("a cat; a dog, a bird;")]}, None, paligemma)
    assert paligemma.prompts[0].text == "detect cat ; dog ; bird"  # PaliGemma gets names without articles
    assert reply.json()["choices"][0]["message"]["content"] == "nothing found"


async def test_caption_needs_no_text() -> None:
    for text in (None, "", "Describe it."):
        reply = await complete({"model": "caption", "messages": [message(text)]}, FakeEngine("a red square"))
        assert reply.json()["choices"][0]["message"]["content"] in ("a red square", "red")


async def test_last_user_message_is_the_question() -> None:
    paligemma = FakeEngine()
    history = [
        {"role": "system", "content": "Be brief."},
        message("what?"),
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": "how many?"},
    ]
    await complete({"model": f"vqa:{PALIGEMMA}", "messages": history}, None, paligemma)
    assert paligemma.prompts[0].text == "answer en how many?" and paligemma.prompts[0].image is not None


async def test_task_fields_are_passed_on() -> None:
    llava = FakeEngine("a", delay_s=5)
    reply = await complete(body("vqa:*", quorum=1, seed=3, max_tokens=7, temperature=0.5, weights={LLAVA: 2}), llava)
    assert reply.json()["choices"][1]["diptych"]["error"]["code"] == "quorum_reached"
    drawn = llava.prompts[0].sampling
    assert (drawn.seed, drawn.max_tokens, drawn.temperature) == (3, 7, 0.5)
    plain = FakeEngine()
    await complete(body("vqa"), plain)
    assert (plain.prompts[0].sampling.temperature, plain.prompts[0].sampling.max_tokens) == (0.0, 32)


@pytest.mark.parametrize("model", ["vqa", "caption:*", f"detect:{LLAVA}", "ocr"])
async def test_sampling_fields_reach_every_model_of_a_fan_out(model: str) -> None:
    """`vllm bench serve` sends ignore_eos to every server."""
    text = "[0.1, 0.1, 0.5, 0.5]" if "detect" in model else "red"
    llava, paligemma = FakeEngine(text), FakeEngine("red")
    more = {"ignore_eos": True, "stop": ["a", "b"], "seed": -3, "temperature": 0.7, "top_p": 0.5}
    given = body(model, max_completion_tokens=9, stream=True, stream_options={"include_usage": True}, **more)
    reply = await complete(given, llava, paligemma)
    assert reply.status_code == 200, reply.text
    prompts = [*llava.prompts, *paligemma.prompts]
    assert len(prompts) == (1 if "detect" in model else 2)
    for prompt in prompts:
        drawn = prompt.sampling
        assert (drawn.ignore_eos, drawn.stop, drawn.seed, drawn.max_tokens) == (True, ("a", "b"), -3, 9)
        assert (drawn.temperature, drawn.top_p) == (0.7, 0.5)


@pytest.mark.parametrize("model", [LLAVA, "vqa", "vqa:*", "caption"])
async def test_top_p_of_zero_is_accepted(model: str) -> None:
    llava = FakeEngine("red")
    for more in ({"top_p": 0}, {"top_p": 0.0, "temperature": 1}, {"top_p": 0, "temperature": 0, "stop": "x"}):
        assert (await complete(body(model, **more), llava)).status_code == 200
        assert llava.prompts[-1].sampling.top_p == 0


@pytest.mark.parametrize(
    ("model", "text", "image", "status", "param", "code"),
    [
        ("vqa", "what?", None, 400, "messages[0].content", "missing_image"),
        ("vqa", None, URL, 400, "messages[0].content", "missing_text"),
        ("vqa", "\r\n", URL, 400, "messages[0].content", "missing_text"),
        ("chat", "\u200b\ufeff", URL, 400, "messages[0].content", "missing_text"),
        ("vqa:*", "\u3000\u00a0\u2060", URL, 400, "messages[0].content", "missing_text"),
        ("detect", " ; ", URL, 400, "messages[0].content", "invalid_value"),
        ("vqa", "x" * 5000, URL, 400, "messages[0].content", "invalid_value"),
        ("vqa:", "what?", URL, 400, "model", "invalid_value"),
        ("vqa:nobody", "what?", URL, 404, "model", "model_not_found"),
        (f"chat:{PALIGEMMA}", "what?", URL, 400, "model", "task_not_supported"),
        ("dance", "what?", URL, 404, "model", "model_not_found"),
        ("llava-1.5-7b", "what?", URL, 404, "model", "model_not_found"),
        ("*", "what?", URL, 404, "model", "model_not_found"),
    ],
)
async def test_invalid_task_completion_is_refused(
    model: str, text: str | None, image: str | None, status: int, param: str, code: str
) -> None:
    refused(await complete({"model": model, "messages": [message(text, image)]}), param, code, status)


async def test_question_refused_by_every_model_is_400() -> None:
    for stream in (False, True):
        for model in ("vqa", "vqa:*"):
            reply = await complete(body(model, stream=stream), FakeEngine(max_chars=3), FakeEngine(max_chars=3))
            refused(reply, "messages[0].content", "context_length_exceeded")
