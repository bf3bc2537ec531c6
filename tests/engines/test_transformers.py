"""The reference engine, on a tiny random PaliGemma. That it agrees with vLLM is test_parity.py's business."""

from collections.abc import AsyncIterator

import checkpoints
import pytest
import pytest_asyncio
from reference.transformers_engine import TransformersEngine

from serve.engines.base import Piece, Prompt, Sampling
from serve.errors import BadRequest, ModelError

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore"), pytest.mark.asyncio(loop_scope="module")]
PICTURE = checkpoints.pictures(1)[0]
TEXT = checkpoints.prompts("paligemma", 2)[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TransformersEngine]:
    folder = checkpoints.make("paligemma", tmp_path_factory.mktemp("checkpoint") / "paligemma")
    engine = TransformersEngine(str(folder))
    with pytest.raises(ModelError):
        await engine.check()
    await engine.start()
    yield engine
    await engine.stop()


async def speak(engine: TransformersEngine, **sampling: object) -> list[Piece]:
    prompt = Prompt(TEXT, PICTURE, Sampling(**{"max_tokens": 12, "ignore_eos": True, **sampling}))
    return [piece async for piece in engine.generate(prompt)]


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_reply_is_generated_by_token_with_log_probabilities(engine: TransformersEngine) -> None:
    pieces = await speak(engine, top_logprobs=2)
    tokens = [token for piece in pieces for token in piece.tokens]
    assert len(pieces) == len(tokens) == 12
    assert "".join(token.text for token in tokens) == text(pieces)
    assert (pieces[-1].finish_reason, pieces[-1].completion_tokens) == ("length", 12)
    first = engine.logprobs(Prompt(TEXT, PICTURE))[0]
    assert tokens[0].logprob == pytest.approx(float(first.max()), abs=1e-5)
    assert [logprob for _, logprob in tokens[0].top] == pytest.approx(first.topk(2).values.tolist(), abs=1e-5)


async def test_a_seed_repeats_and_a_stop_text_ends(engine: TransformersEngine) -> None:
    once, again, other = [text(await speak(engine, temperature=1.5, seed=seed)) for seed in (1, 1, 2)]
    assert once == again != other
    whole = text(await speak(engine))
    pieces = await speak(engine, stop=(whole[5:8],))
    assert text(pieces) == whole[: whole.index(whole[5:8])] and pieces[-1].finish_reason == "stop"


async def test_a_schema_is_refused(engine: TransformersEngine) -> None:
    with pytest.raises(BadRequest):
        await speak(engine, json_schema="{}")


async def test_a_video_is_refused_where_only_images_are_taken(engine: TransformersEngine) -> None:
    with pytest.raises(BadRequest) as caught:
        engine.inputs(Prompt(TEXT, None, video=checkpoints.films(1)[0]))
    assert caught.value.param == "video"
