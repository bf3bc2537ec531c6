import asyncio
import contextlib

import pytest

from serve.engines.base import Engine, Piece, Prompt, Sampling
from serve.engines.fake import FakeEngine
from serve.errors import BadRequest, ModelError

ASK = Prompt("what color is the dog?", None)


async def speak(engine: Engine, prompt: Prompt = ASK) -> list[Piece]:
    return [piece async for piece in engine.generate(prompt)]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_reply_is_generated_word_by_word():
    pieces = await speak(FakeEngine("a red dog"))
    assert [piece.text for piece in pieces] == ["a ", "red ", "dog"]
    assert [piece.finish_reason for piece in pieces] == [None, None, "stop"]
    assert pieces[-1].completion_tokens == 3 and pieces[-1].prompt_tokens == 5
    assert "".join(token.text for piece in pieces for token in piece.tokens) == "a red dog"


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        ({"": "no", "color": "red", "what color": "blue"}, "blue"),
        (lambda prompt: prompt.text.upper(), "WHAT COLOR IS THE DOG?"),
        (["<loc0001>", "<loc0002>", " dog"], "<loc0001><loc0002> dog"),
        ("", ""),
    ],
)
async def test_replies_can_be_a_mapping_a_function_or_pieces(replies, expected):
    pieces = await speak(FakeEngine(replies))
    assert text(pieces) == expected
    assert pieces[-1].finish_reason == "stop"


async def test_prompt_without_a_reply_is_an_error():
    with pytest.raises(ModelError, match="told nothing about"):
        await speak(FakeEngine({"how many": "3"}))


async def test_max_tokens_cuts_the_reply():
    pieces = await speak(FakeEngine("one two three"), Prompt("count", None, Sampling(max_tokens=2)))
    assert text(pieces) == "one two " and pieces[-1].finish_reason == "length"


async def test_a_failure_leaves_the_engine_alive_and_a_death_does_not():
    engine = FakeEngine("one two three", fail_after=1)
    pieces = []
    with pytest.raises(ModelError):
        async for piece in engine.generate(ASK):
            pieces.append(piece.text)
    assert pieces == ["one "] and engine.aborted == 1
    await engine.check()

    engine = FakeEngine("one two three", die_after=2)
    with pytest.raises(ModelError) as caught:
        await speak(engine)
    assert caught.value.code == "engine_dead"
    with pytest.raises(ModelError):
        await engine.check()
    engine.die_after = None
    engine.revive()
    assert text(await speak(engine)) == "one two three"


async def test_a_kill_ends_an_answer_that_is_waiting():
    engine = FakeEngine("never", first_delay_s=60)
    answer = asyncio.create_task(speak(engine))
    while not engine.speaking:
        await asyncio.sleep(0)
    engine.kill()
    with pytest.raises(ModelError):
        await asyncio.wait_for(answer, 1)
    assert engine.speaking == 0


async def test_leaving_early_is_counted_and_leaves_nothing_behind():
    engine = FakeEngine("one two three")
    async with contextlib.aclosing(engine.generate(ASK)) as pieces:
        async for _ in pieces:
            break
    assert (engine.aborted, engine.speaking) == (1, 0)


async def test_a_start_can_fail_and_a_prompt_can_be_too_long():
    with pytest.raises(ModelError, match="no memory"):
        await FakeEngine(fail_start="no memory").start()
    with pytest.raises(BadRequest) as caught:
        await speak(FakeEngine(max_chars=5))
    assert caught.value.code == "context_length_exceeded"
