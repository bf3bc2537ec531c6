"""Workers: every step of an answer, on a fake engine."""

import asyncio
import math
from dataclasses import replace

import numpy as np
import pytest

from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.errors import ModelError
from serve.media.image import Image
from serve.media.video import Video
from serve.models import MODELS
from serve.tasks.boxes import DetectResult
from serve.tasks.detect import DetectRequest
from serve.tasks.reply import Delta, Reply
from serve.tasks.vqa import VqaRequest, VqaResult
from serve.worker import Worker

PICTURE = Image(np.zeros((100, 100, 3), np.uint8))
QUESTION = VqaRequest(image=PICTURE, question="q")


async def ready(engine: FakeEngine, model: str = "toy-llava") -> Worker:
    worker = Worker(MODELS[model], engine)
    await worker.start()
    return worker


async def test_text_is_streamed_and_parsed_at_the_end() -> None:
    worker = await ready(FakeEngine([" red", " circle"], logprob=math.log(0.5)))
    events = [event async for event in worker.answer("vqa", QUESTION)]
    assert events[:-1] == [Delta("toy-llava", " red"), Delta("toy-llava", " circle")]
    reply = events[-1]
    assert isinstance(reply, Reply) and reply.result == VqaResult(answer="red circle")
    assert (reply.status, reply.text, reply.finish_reason) == ("ok", " red circle", "stop")
    assert reply.confidence == pytest.approx(0.5)
    assert reply.usage.completion_tokens == 2 and reply.usage.total_tokens > 50


async def test_task_that_a_newer_config_gives_to_the_model_waits_for_a_newer_process() -> None:
    worker = await ready(FakeEngine())
    worker.model = replace(worker.model, skills={"ocr": worker.model.skills["ocr"]})
    with pytest.raises(ModelError, match="began before it was to do vqa") as caught:
        await anext(worker.answer("vqa", QUESTION))
    assert caught.value.code == "model_starting"  # the pool takes an error of the engine for a fault, and rests


async def test_several_prompts_run_concurrently_and_their_texts_come_in_order() -> None:
    engine = FakeEngine({": cat": ["[0.1, ", "0.1, 0.2, 0.2]"], ": dog": ["[0.5, 0.5, 0.9, 0.9]"]}, delay_s=0.01)
    worker = await ready(engine)
    events = [event async for event in worker.answer("detect", DetectRequest(image=PICTURE, labels=["cat", "dog"]))]
    streamed = "".join(event.text for event in events if isinstance(event, Delta))
    reply = events[-1]
    assert isinstance(reply, Reply) and streamed == reply.text == "[0.1, 0.1, 0.2, 0.2]\n[0.5, 0.5, 0.9, 0.9]"
    assert isinstance(reply.result, DetectResult)
    assert [(box.label, box.box) for box in reply.result.boxes] == [
        ("cat", (10, 10, 20, 20)),
        ("dog", (50, 50, 90, 90)),
    ]
    assert reply.usage.completion_tokens == 3 and len(engine.prompts) == 2


async def test_reply_cut_by_max_tokens_keeps_complete_objects() -> None:
    first, other = "<loc0100><loc0100><loc0200><loc0200>", " <loc0300><loc0300><loc0500><loc0500>"
    pieces = [first, " red circle", " ;", other, " red"]
    for limit, labels in ((2, ["Red circle."]), (5, ["Red circle."]), (6, ["Red circle.", "red star"])):
        worker = await ready(FakeEngine([*pieces, " star", " ;"]), "toy-paligemma")
        request = DetectRequest(image=PICTURE, labels=["Red circle.", "red star"], max_tokens=limit)
        reply = [event async for event in worker.answer("detect", request)][-1]
        assert isinstance(reply, Reply) and isinstance(reply.result, DetectResult)
        assert (reply.status, reply.finish_reason) == ("ok", "length")
        assert [box.label for box in reply.result.boxes] == labels
    worker = await ready(FakeEngine(pieces), "toy-paligemma")
    reply = [event async for event in worker.answer("detect", request.model_copy(update={"max_tokens": 1}))][-1]
    assert isinstance(reply, Reply) and reply.error is not None
    assert (reply.status, reply.finish_reason, reply.error.code) == ("error", "length", "parse_error")
    assert "max_tokens" in reply.error.message


async def test_text_that_cannot_be_parsed_is_kept_with_the_error() -> None:
    worker = await ready(FakeEngine("no idea"))
    events = [event async for event in worker.answer("detect", DetectRequest(image=PICTURE, labels=["cat"]))]
    reply = events[-1]
    assert isinstance(reply, Reply) and reply.error is not None
    assert (reply.status, reply.error.code, reply.text, reply.result) == ("error", "parse_error", "no idea", None)


async def test_failed_prompt_stops_the_other_prompts() -> None:
    engine = FakeEngine({"cat": "[0.1, 0.1, 0.2, 0.2]", "dog": "[0.5"}, delay_s=0.05, die_after=1)
    worker = await ready(engine)
    with pytest.raises(ModelError):
        async for _ in worker.answer("detect", DetectRequest(image=PICTURE, labels=["cat", "dog"])):
            pass
    assert engine.speaking == 0


async def test_closed_stream_aborts_the_engine() -> None:
    engine = FakeEngine("one two three four", delay_s=0.05)
    worker = await ready(engine)
    answer = worker.answer("vqa", QUESTION)
    async for _ in answer:
        break
    await answer.aclose()
    assert (engine.speaking, engine.aborted) == (0, 1)


async def test_cancelled_answer_aborts_the_engine() -> None:
    engine = FakeEngine("one two", delay_s=30)
    worker = await ready(engine)

    async def listen() -> None:
        async for _ in worker.answer("vqa", QUESTION):
            pass

    job = asyncio.create_task(listen())
    await asyncio.sleep(0.05)
    assert engine.speaking == 1
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert (engine.speaking, engine.aborted) == (0, 1)


async def test_status_has_progress_and_the_reason_of_a_failure() -> None:
    now = [100.0]
    worker = Worker(MODELS["toy-llava"], FakeEngine(fail_start="There is no such folder."), clock=lambda: now[0])
    now[0] += 3
    status = await worker.status()
    assert (status.state, status.since_s) == ("starting", 3)
    with pytest.raises(ModelError, match="still starting"):
        await anext(worker.answer("vqa", QUESTION))
    await worker.start()
    status = await worker.status()
    assert (status.state, status.step) == ("failed", "There is no such folder.")
    with pytest.raises(ModelError, match="no such folder"):
        await anext(worker.answer("vqa", QUESTION))


async def test_video_in_a_conversation_is_reduced_to_the_frames_of_the_model() -> None:
    engine = FakeEngine("a b")
    worker = await ready(engine, "llava-next-video-7b")
    film = Video(np.zeros((32, 8, 8, 3), np.uint8), tuple(float(at) for at in range(32)), 32.0)
    async for _ in worker.speak(Prompt("USER: <video>\nWhy? ASSISTANT:", None, video=film)):
        pass
    (prompt,) = engine.prompts
    assert prompt.video is not None and len(prompt.video.frames) == 24


async def test_conversation_yields_the_pieces_of_the_engine() -> None:
    worker = await ready(FakeEngine("a b"))
    (prompt,) = worker.model.skills["vqa"].ask(QUESTION)
    pieces = [piece async for piece in worker.speak(prompt)]
    assert "".join(piece.text for piece in pieces) == "a b" and pieces[-1].finish_reason == "stop"
