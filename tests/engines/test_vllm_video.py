"""A film through the real vLLM behind our Engine protocol: a tiny random LLaVA-NeXT-Video, which takes nothing else."""

import asyncio
import gc
from collections.abc import AsyncIterator
from pathlib import Path

import checkpoints
import numpy as np
import pytest
import pytest_asyncio
from filmed import film

from serve.engines.base import Piece, Prompt, Sampling
from serve.engines.vllm.engine import VllmEngine
from serve.errors import BadRequest
from serve.media import video
from serve.media.video import Video
from serve.models import MODELS

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]
TEXT = "USER: <video>\nwhat color? ASSISTANT:"
FILM = video.decode_video(film(40))
FRAMES = 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmEngine]:
    folder: Path = checkpoints.make("llava_next_video", tmp_path_factory.mktemp("checkpoint") / "llava", 256)
    published = MODELS["llava-next-video-7b"].family_args
    engine = VllmEngine(str(folder), family_args={**published, "max_model_len": 256})
    await engine.start()
    yield engine
    await engine.stop()
    del engine
    await asyncio.sleep(0.1)
    gc.collect()  # vLLM leaves a zmq context to the collector, which complains: here, where nobody minds


def ask(seen: Video | None, text: str = TEXT) -> Prompt:
    return Prompt(text, None, Sampling(max_tokens=16, ignore_eos=True), seen)


async def speak(engine: VllmEngine, prompt: Prompt) -> list[Piece]:
    return [piece async for piece in engine.generate(prompt)]


async def test_every_frame_of_a_video_counts(engine: VllmEngine) -> None:
    pieces = await speak(engine, ask(FILM.sample(FRAMES)))
    text = "".join(piece.text for piece in pieces)
    assert text and pieces[-1].completion_tokens == 16
    longer = await speak(engine, ask(FILM.sample(2 * FRAMES)))
    each = (longer[-1].prompt_tokens - pieces[-1].prompt_tokens) / FRAMES
    assert each == 16  # tokens a frame of this checkpoint: all frames are read, and none is picked again
    noise = np.random.default_rng(1).integers(0, 256, FILM.sample(FRAMES).frames.shape, np.uint8)
    other = await speak(engine, ask(Video(noise, FILM.times[:FRAMES], 4.0)))
    first, last = pieces[0].tokens[0], other[0].tokens[0]
    assert (first.text, first.logprob) != (last.text, last.logprob)  # what is in them counts
    again = await speak(engine, ask(FILM.sample(FRAMES)))
    assert "".join(piece.text for piece in again) == text


async def test_engine_was_warmed_up_with_a_video(engine: VllmEngine) -> None:
    assert engine._takes == {"video"} and engine._placeholders == {"image": "<image>", "video": "<video>"}


async def test_id_without_a_token_does_not_end_the_engine(engine: VllmEngine) -> None:
    """Published checkpoints have more embeddings than their tokenizers have tokens, and vLLM dies of such an id."""
    nameless = engine._llm.model_config.get_vocab_size() - len(engine._llm.renderer.tokenizer)
    assert nameless > 0
    drawn = Sampling(max_tokens=100, temperature=2.0, seed=3, top_logprobs=20, ignore_eos=True)
    pieces = await speak(engine, Prompt(TEXT, None, drawn, FILM.sample(2)))
    ranked = [text for piece in pieces for token in piece.tokens for text, _ in token.top]
    assert pieces[-1].finish_reason == "length" and "" in ranked
    await engine.check()


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (ask(FILM.sample(2), TEXT.replace("color", "<video>")), "invalid_value"),
        (ask(FILM.sample(2), TEXT.replace("color", "<image>")), "invalid_value"),
        (ask(None), "invalid_value"),
        (ask(FILM), "context_length_exceeded"),
        (Prompt(TEXT.replace("video", "image"), FILM.first_frame()), None),
    ],
    ids=["two films", "a picture's mark", "no film", "too many frames", "a picture"],
)
async def test_invalid_input_is_refused_and_the_engine_lives(
    engine: VllmEngine, prompt: Prompt, code: str | None
) -> None:
    with pytest.raises(BadRequest) as caught:
        await asyncio.wait_for(speak(engine, prompt), 30)
    assert code is None or caught.value.code == code
    await engine.check()
    assert (await speak(engine, ask(FILM.sample(1))))[-1].completion_tokens == 16
