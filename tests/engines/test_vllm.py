"""The real vLLM behind our Engine protocol, in its own processes, on a tiny random LLaVA."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import checkpoints
import numpy as np
import psutil
import pytest
import pytest_asyncio
from collected import Collector, collector
from running import alive

from serve import tracing
from serve.engines.base import Piece, Prompt, Sampling
from serve.engines.vllm import multimodal
from serve.engines.vllm.engine import VllmEngine
from serve.errors import BadRequest, ModelError
from serve.media.image import Image
from serve.media.outline import Outline
from serve.models.reasoning import Reasoning, ReasoningStyle
from serve.tracing import REQUEST_ID

pytestmark = [
    pytest.mark.engine,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.asyncio(loop_scope="module"),
]
PICTURE = checkpoints.pictures(1)[0]
TEXT = checkpoints.prompts("llava", 1)[0]
MARKS = ReasoningStyle("test", ("<pad>",), ("</s>",))
"""Tokens that this tokenizer has."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make("llava", tmp_path_factory.mktemp("checkpoint") / "llava")


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.proto.collector", reason="the extra otel is not installed")
    with collector() as traces_collector, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
        yield traces_collector


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(folder: Path, traces: Collector) -> AsyncIterator[VllmEngine]:
    arguments = {"otlp_traces_endpoint": f"{traces.url}/v1/traces"}
    engine = VllmEngine(str(folder), family_args=Reasoning((MARKS,)).engine_args(), engine_args=arguments)
    await engine.start()
    yield engine
    await engine.stop()
    del engine
    await asyncio.sleep(0.1)
    gc.collect()  # vLLM leaves a zmq context to the collector, which complains: here, where nobody minds


@pytest.fixture(autouse=True)
def tidy() -> Iterator[None]:
    yield
    gc.collect()  # what a dead engine leaves is complained about here, where nobody minds


async def speak(engine: VllmEngine, prompt: Prompt) -> list[Piece]:
    return [piece async for piece in engine.generate(prompt)]


async def _rest(pieces: AsyncGenerator[Piece, None]) -> None:
    async for _piece in pieces:
        pass


def ask(text: str = TEXT, **sampling: object) -> Prompt:
    return Prompt(text, PICTURE, Sampling(**{"max_tokens": 24, "ignore_eos": True, **sampling}))


def text(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


async def test_reply_is_streamed_with_a_log_probability_for_every_token(engine: VllmEngine) -> None:
    pieces = await speak(engine, ask(top_logprobs=3))
    tokens = [token for piece in pieces for token in piece.tokens]
    assert len(pieces) > 1 and len(tokens) == 24
    assert "".join(token.text for token in tokens) == text(pieces) != ""
    assert all(token.logprob <= 0 and len(token.top) == 3 for token in tokens)
    assert all(abs(token.top[0][1] - token.logprob) < 1e-6 for token in tokens)  # greedy: its own is the likeliest
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (pieces[-1].finish_reason, pieces[-1].completion_tokens) == ("length", 24)
    assert pieces[-1].prompt_tokens > 16  # the picture's own


@pytest.mark.parametrize("budget", [0, 5])
async def test_reasoning_is_ended_after_its_budget_of_tokens(engine: VllmEngine, budget: int) -> None:
    reasoning = Reasoning((MARKS,))
    prompt = replace(ask(TEXT + "<pad>"), sampling=Sampling(24, ignore_eos=True, thinking_token_budget=budget))
    pieces = await speak(engine, prompt)
    tokens = [token.text for piece in pieces for token in piece.tokens]
    assert tokens.index("</s>") == budget
    splitter = reasoning.splitter(prompt)
    split = [splitter.feed(piece) for piece in pieces]
    assert "".join(piece.reasoning for piece in split) == "".join(tokens[:budget]).lstrip()
    assert text(split) == "".join(tokens[budget + 1 :]).lstrip() != ""


async def test_reply_that_is_not_streamed_comes_in_large_pieces(engine: VllmEngine) -> None:
    streamed = await speak(engine, ask(max_tokens=80))
    pieces = await speak(engine, replace(ask(max_tokens=80), whole=True))
    assert [len(piece.tokens) for piece in pieces] == [1, 32, 32, 15]
    assert [piece.completion_tokens for piece in pieces] == [1, 33, 65, 80]
    assert text(pieces) == text(streamed) == "".join(token.text for piece in pieces for token in piece.tokens)


async def test_reply_comes_in_few_messages_and_a_stream_at_its_pace(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.v1.engine.output_processor import OutputProcessor

    messages: list[int] = []
    process = OutputProcessor.process_outputs

    def counted(self: Any, outputs: Any, *arguments: Any, **options: Any) -> Any:
        messages.append(sum(len(output.new_token_ids) for output in outputs))
        return process(self, outputs, *arguments, **options)

    monkeypatch.setattr(OutputProcessor, "process_outputs", counted)
    await speak(engine, replace(ask(max_tokens=80), whole=True))
    assert messages == [1, 32, 32, 15]
    for pace_s, expected in ((0.0, [1] * 80), (60.0, [1, 79])):
        messages.clear()
        monkeypatch.setattr("serve.engines.vllm.translate.PACE_S", pace_s)
        await speak(engine, ask(max_tokens=80))
        assert messages == expected
    messages.clear()
    await speak(engine, replace(ask(stop=("never said",)), whole=True))
    assert messages == [1] * 24  # the text is looked at after each token


async def test_whole_replies_beside_streams_have_the_same_tokens(engine: VllmEngine) -> None:
    prompts = [ask(max_tokens=length, top_logprobs=top) for length, top in ((70, 0), (45, 3), (60, 0), (33, 2))]
    alone = [await speak(engine, prompt) for prompt in prompts]
    mixed = await asyncio.gather(
        *(speak(engine, replace(prompt, whole=bool(at % 3))) for at, prompt in enumerate(prompts))
    )
    for expected, pieces in zip(alone, mixed, strict=True):
        tokens, true = ([token for piece in some for token in piece.tokens] for some in (pieces, expected))
        assert text(pieces) == text(expected) == "".join(token.text for token in tokens)
        assert [len(token.top) for token in tokens] == [len(token.top) for token in true]
        assert np.allclose([token.logprob for token in tokens], [token.logprob for token in true], atol=1e-4)
        assert pieces[-1].completion_tokens == expected[-1].completion_tokens


@pytest.mark.parametrize("side", [1, 5, 50, 224, 336, 700])
async def test_images_of_a_fixed_size_are_processed_bit_by_bit_as_by_transformers(
    engine: VllmEngine, side: int
) -> None:
    fixed, renderer = engine._fixed_images, engine._llm.renderer
    assert fixed is not None
    image = Image(np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8), f"drawn {side}")
    prompt = Prompt(TEXT, image)
    (expected,) = renderer.render_cmpl([{"prompt": TEXT, **multimodal.multimodal_input(prompt)}])
    assert fixed.applies_to(prompt) and not fixed.applies_to(Prompt(TEXT + " a" * 2000, image))
    inputs = fixed.inputs(TEXT, {**fixed.prepare(prompt), **multimodal.uuids(image)})
    assert inputs["mm_kwargs"]["image"] == expected["mm_kwargs"]["image"]
    for key in ("type", "prompt", "prompt_token_ids", "mm_placeholders"):
        assert inputs[key] == expected[key]


async def test_vllms_span_is_under_ours(engine: VllmEngine, traces: Collector) -> None:
    from opentelemetry.sdk.trace import TracerProvider

    async def under_a_span() -> str:
        with tracing.begin("ours") as span:
            span.make_current()
            await speak(engine, ask())
            return tracing.traceparent()

    tracing.use(TracerProvider())
    try:
        above = await asyncio.create_task(under_a_span())  # in a context of its own
    finally:
        tracing.use(None)
    spans = await asyncio.to_thread(traces.trace, above[3:35], "llm_request")
    assert spans["llm_request"].under == above[36:52]


async def test_vllm_knows_a_request_by_its_id(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    known: list[str] = []
    generate = engine._llm.generate

    def watched(inputs: object, params: object, request_id: str, **more: object) -> object:
        known.append(request_id)
        return generate(inputs, params, request_id, **more)

    monkeypatch.setattr(engine._llm, "generate", watched)
    REQUEST_ID.set("the-one")
    await asyncio.gather(*(speak(engine, ask(max_tokens=2)) for _ in range(2)))  # twice at once, as a fan-out may
    assert len(set(known)) == 2 and all(name.startswith("the-one-") for name in known)


async def test_concurrent_replies_equal_replies_alone(engine: VllmEngine) -> None:
    prompts = [
        Prompt(question, picture, Sampling(max_tokens=20, ignore_eos=True))
        for question, picture in zip(checkpoints.prompts("llava", 12), checkpoints.pictures(12), strict=True)
    ]
    together = await asyncio.gather(*(speak(engine, prompt) for prompt in prompts))
    for prompt, pieces in list(zip(prompts, together, strict=True))[:3]:
        assert text(await speak(engine, prompt)) == text(pieces)
    for pieces in together:
        assert "".join(token.text for piece in pieces for token in piece.tokens) == text(pieces)


async def test_same_seed_gives_the_same_reply(engine: VllmEngine) -> None:
    seeds = [7, 7, 8, -1, 2**70]
    replies = [text(await speak(engine, ask(temperature=1.0, seed=seed))) for seed in seeds]
    assert replies[0] == replies[1] != replies[2]


async def test_reply_stops_at_a_stop_text_and_at_the_end_of_sequence(engine: VllmEngine) -> None:
    whole = text(await speak(engine, ask()))
    stop = whole[4:7]
    pieces = await speak(engine, ask(stop=(stop,)))
    assert text(pieces) == whole[: whole.index(stop)]
    assert pieces[-1].finish_reason == "stop"
    assert "".join(token.text for piece in pieces for token in piece.tokens) == text(pieces)
    for seed in range(40):  # random weights reach the end of sequence now and then
        pieces = await speak(engine, ask(temperature=2.0, seed=seed, ignore_eos=False, max_tokens=80))
        if pieces[-1].finish_reason == "stop":
            break
    assert pieces[-1].finish_reason == "stop"
    assert "</s>" not in text(pieces)


@pytest.mark.parametrize(
    ("prompt", "code"),
    [
        (ask("USER: <image>\n" + "a dog " * 200 + "ASSISTANT:"), "context_length_exceeded"),
        (ask("USER: <image>\nwhat is <image>? ASSISTANT:"), "invalid_value"),
        (Prompt("a picture: <image>", None), "invalid_value"),
        (ask(temperature=-1.0), "invalid_value"),
        (ask(json_schema='{"type": "no such thing"}'), "invalid_schema"),
        (ask(json_schema='{"$ref": "#/nowhere"}'), "invalid_schema"),
        (ask(json_schema="not json"), None),
    ],
    ids=[
        "too long",
        "two image tokens",
        "image token without image",
        "temperature",
        "bad schema",
        "no schema",
        "not json",
    ],
)
async def test_invalid_prompt_is_refused_and_the_engine_lives(
    engine: VllmEngine, prompt: Prompt, code: str | None
) -> None:
    with pytest.raises(BadRequest) as caught:
        await asyncio.wait_for(speak(engine, prompt), 30)
    assert code is None or caught.value.code == code
    await engine.check()
    assert text(await speak(engine, ask(max_tokens=2)))


async def test_reply_follows_a_json_schema(engine: VllmEngine) -> None:
    schema = {
        "type": "object",
        "properties": {"color": {"enum": ["red", "blue"]}},
        "required": ["color"],
        "additionalProperties": False,
    }
    pieces = await speak(engine, ask(json_schema=json.dumps(schema), ignore_eos=False, max_tokens=60))
    assert pieces[-1].finish_reason == "stop"
    assert json.loads(text(pieces))["color"] in ("red", "blue")


async def test_leaving_aborts_the_work(engine: VllmEngine) -> None:
    async with contextlib.aclosing(engine.generate(ask(max_tokens=90))) as pieces:
        async for _ in pieces:
            break
    task = asyncio.create_task(speak(engine, ask(max_tokens=90)))
    while not engine._llm.get_num_unfinished_requests():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine._llm.get_num_unfinished_requests() == 0


async def test_weights_that_do_not_fit_fail_with_a_sentence(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    other = {name.replace(".vision_model.", ".visions."): tensor for name, tensor in weights.items()}
    save_file(other, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="could not be loaded: .*visions") as caught:
        await VllmEngine(str(tmp_path)).start()
    assert caught.value.code == "load_failed" and "\n" not in caught.value.message


async def test_a_build_for_gpus_that_finds_none_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import platforms
    from vllm.platforms.interface import UnspecifiedPlatform

    monkeypatch.setattr(platforms, "_current_platform", UnspecifiedPlatform())
    with pytest.raises(ModelError, match="built for a GPU and finds none") as caught:
        await VllmEngine(str(folder)).start()
    assert caught.value.code == "load_failed"


async def test_a_killed_engine_is_known_to_be_dead(folder: Path) -> None:
    """Last: it starts an engine of its own and kills it in mid-answer."""
    before = set(psutil.Process().children(recursive=True))
    engine = VllmEngine(str(folder), engine_args={"max_num_seqs": 4})
    steps: list[str] = []
    engine.progress = steps.append
    await engine.start()
    assert steps[0] == "importing vLLM" and steps[-1] == "ready"
    mine = set(psutil.Process().children(recursive=True)) - before
    [core] = [process for process in mine if "EngineCore" in " ".join(process.cmdline())]
    answer = engine.generate(ask(max_tokens=100))
    await anext(answer)
    os.kill(core.pid, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(ModelError) as caught:
        await asyncio.wait_for(_rest(answer), 20)
    assert caught.value.code == "engine_dead"
    with pytest.raises(ModelError):
        await engine.check()
    with pytest.raises(ModelError):
        await asyncio.wait_for(speak(engine, ask()), 5)
    assert time.monotonic() - began < 15
    await engine.stop()
    assert not [process for process in mine if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def broken_image(digest: str) -> Image:
    """Return an undecoded image whose file cannot be decoded."""
    return Image.undecoded(b"no picture", "image", digest, Outline("PNG", (48, 36), 10, (), 1))


async def test_image_in_the_cache_is_not_decoded_again(engine: VllmEngine) -> None:
    first, again = Image(PICTURE.pixels, "shown before"), broken_image("shown before")
    assert not engine.has_cached(first)
    pieces = await speak(engine, replace(ask(), image=first))
    assert engine.has_cached(again)
    assert text(await speak(engine, replace(ask(), image=again))) == text(pieces)


async def test_image_evicted_from_the_cache_is_decoded(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_cached", lambda image: True)
    gone = Image(PICTURE.pixels, "put out")
    assert text(await speak(engine, replace(ask(), image=gone))) == text(await speak(engine, ask()))
    with pytest.raises(BadRequest, match="damaged"):
        await speak(engine, replace(ask(), image=broken_image("never shown")))


async def test_batch_requests_wait_for_others(engine: VllmEngine) -> None:
    ended: list[str] = []

    async def run(name: str, prompt: Prompt) -> None:
        await speak(engine, prompt)
        ended.append(name)

    patient = replace(ask(max_tokens=80), batch=True, whole=True)
    crowd = [asyncio.ensure_future(run("batch", patient)) for _ in range(200)]  # three waves of 64, and eight more
    await asyncio.sleep(0)
    await run("now", replace(ask(max_tokens=80), whole=True))
    # In turn it would come with the last eight. It is prepared after all of them, while the first waves run.
    assert ended.index("now") < 150
    await asyncio.gather(*crowd)


async def test_engine_that_slept_answers_as_before(engine: VllmEngine) -> None:
    """Sleep and wake on a CPU: the engine ends and starts again, as those of a group do."""
    before = text(await speak(engine, ask()))
    processes = engine._processes()
    await engine.sleep()
    assert processes and not any(alive(process) for process in processes)
    with pytest.raises(ModelError, match="not running"):
        await speak(engine, ask())
    await engine.wake()
    assert text(await speak(engine, ask())) == before
