"""Videos over HTTP: tasks as JSON and forms, chat completions of a model and of a task."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from filmed import animation, blinking, film, numbers, url
from served import LLAVA, URL, calling, frames, picture, plain

from serve.api.app import create_app
from serve.engines.fake import FakeEngine
from serve.media import processes
from serve.media.video_caps import evenly
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

FILMS, BOTH = "llava-next-video-7b", "llava-onevision-qwen2-0.5b-ov"
FILM = film(40)
VQA = {"video": url(FILM), "question": "what happens?"}


def served(**engines: FakeEngine) -> FastAPI:
    """Create an app with a model for videos, a model for both and a model for images, as in the catalogue."""
    workers = [Worker(MODELS[name], engines.get(at) or FakeEngine("red")) for at, name in ROLES.items()]
    for worker in workers:
        worker.mark("ready", "ready")
    return create_app(Router(workers))


ROLES = {"films": FILMS, "both": BOTH, "pictures": LLAVA}


async def post(path: str, body: Any = None, app: FastAPI | None = None, **more: Any) -> httpx.Response:
    async with calling(app or served()) as client:
        return await client.post(path, json=body, **more) if body is not None else await client.post(path, **more)


def refused(reply: httpx.Response, status: int, param: str, code: str, says: str = "") -> None:
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["code"]) == (status, param, code), error
    assert says in error["message"]


def chat_body(part: Any, model: str, text: str = "what happens?", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": [part, {"type": "text", "text": text}]}], **more}


def part(data: bytes = FILM, kind: str = "video/mp4") -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url(data, kind)}}


# Tasks


async def test_every_model_that_takes_video_answers() -> None:
    films, both = FakeEngine("a dog runs"), FakeEngine("a dog runs")
    reply = (await post("/v1/tasks/vqa", VQA, served(films=films, both=both))).json()
    assert [column["model"] for column in reply["replies"]] == [FILMS, BOTH]
    assert [column["status"] for column in reply["replies"]] == ["ok", "ok"]
    assert reply["merged"]["result"]["answer"] == "a dog runs" and reply["merged"]["agreement"] == 1.0
    assert reply["image"] == {"width": 64, "height": 48}
    assert reply["video"] == {"frames": 32, "seconds": 4.0}
    for engine, name in ((films, FILMS), (both, BOTH)):
        [prompt] = engine.prompts
        assert prompt.text.count("<video>") == 1 and "<image>" not in prompt.text and prompt.image is None
        assert prompt.video is not None
        seen = [evenly(40, 32)[at] for at in evenly(32, MODELS[name].frames)]
        assert numbers(prompt.video.frames) == seen and seen[0] == 0 and seen[-1] == 39


@pytest.mark.parametrize("task", ["caption", "chat", "ocr"])
async def test_other_tasks_take_videos_too(task: str) -> None:
    question = {"question": "what happens?"} if task == "chat" else {}
    reply = await post(f"/v1/tasks/{task}", {"video": url(FILM), **question})
    assert reply.status_code == 200 and [column["model"] for column in reply.json()["replies"]] == [FILMS, BOTH]


async def test_image_goes_to_the_models_that_take_images() -> None:
    reply = (await post("/v1/tasks/vqa", {"image": URL, "question": "q"})).json()
    assert [column["model"] for column in reply["replies"]] == [BOTH, LLAVA] and "video" not in reply


@pytest.mark.parametrize("data", [FILM, film(12, "libvpx-vp9"), animation()], ids=["mp4", "webm", "gif"])
async def test_form_carries_the_video_as_a_file(data: bytes) -> None:
    both = FakeEngine("red")
    form = {"question": "what happens?", "models": BOTH, "stream": "true"}
    reply = await post("/v1/tasks/vqa", app=served(both=both), data=form, files={"video": data})
    assert frames(reply.text)[-1] == (None, "[DONE]") and both.prompts[0].video is not None


async def test_an_animation_sent_as_an_image_is_its_first_frame() -> None:
    pictures = FakeEngine("red")
    form = {"question": "q", "models": LLAVA}
    await post("/v1/tasks/vqa", app=served(pictures=pictures), data=form, files={"image": animation()})
    assert pictures.prompts[0].video is None and pictures.prompts[0].image is not None


async def test_model_without_video_is_refused_by_name() -> None:
    says = f"{LLAVA} takes images, not video."
    refused(await post("/v1/tasks/vqa", VQA | {"models": [BOTH, LLAVA]}), 400, "models", "video_not_supported", says)
    says = f"{FILMS} takes video, not images."
    still = {"image": URL, "question": "q", "models": [FILMS]}
    refused(await post("/v1/tasks/vqa", still), 400, "models", "image_not_supported", says)
    detect = {"video": url(FILM), "labels": ["cat"], "models": [FILMS]}
    refused(await post("/v1/tasks/detect", detect), 400, "models", "task_not_supported")


@pytest.mark.parametrize(
    ("files", "status", "param", "code"),
    [
        ({"video": b""}, 400, "video", "invalid_video"),
        ({"video": picture()}, 400, "video", "invalid_video"),
        ({"video": FILM[:1000]}, 400, "video", "invalid_video"),
        ({"video": FILM, "image": picture()}, 400, "video", "invalid_value"),
        ([("video", FILM), ("video", FILM)], 400, "video", "invalid_value"),
        ({"video": b"\0\0\0\x20ftypisom" + bytes(21 * 2**20)}, 413, "video", "video_too_large"),
        ({"image": FILM}, 400, "image", "invalid_image"),
    ],
    ids=["empty", "a picture", "cut short", "both", "two", "21 MB", "as an image"],
)
async def test_wrong_video_is_refused_by_field_name(files: Any, status: int, param: str, code: str) -> None:
    refused(await post("/v1/tasks/vqa", data={"question": "q"}, files=files), status, param, code)


@pytest.mark.slow
async def test_openapi_document_describes_videos() -> None:
    async with calling(plain()) as client:
        document = (await client.get("/openapi.json")).json()
    body = document["components"]["schemas"]["VqaRequest"]
    assert "image" not in body["required"] and body["oneOf"] == [{"required": ["image"]}, {"required": ["video"]}]
    form = document["paths"]["/v1/tasks/vqa"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["properties"]["video"] == {"type": "string", "format": "binary"}
    assert "VideoPart" in document["components"]["schemas"] and "Length" in document["components"]["schemas"]


# Chat completions


@pytest.mark.parametrize("short", [False, True])
async def test_lone_model_answers_about_a_video(short: bool) -> None:
    films = FakeEngine("a dog runs")
    media_part = {"type": "video_url", "video_url": url(FILM)} if short else part()
    reply = await post("/v1/chat/completions", chat_body(media_part, FILMS), served(films=films))
    assert reply.json()["choices"][0]["message"]["content"] == "a dog runs"
    [prompt] = films.prompts
    assert prompt.text == "USER: <video>\nwhat happens? ASSISTANT:" and prompt.image is None
    assert prompt.video is not None and len(prompt.video.frames) == MODELS[FILMS].frames


async def test_task_as_the_model_answers_about_a_video() -> None:
    reply = (await post("/v1/chat/completions", chat_body(part(), "vqa:*"))).json()
    assert [choice["diptych"]["model"] for choice in reply["choices"]] == [None, FILMS, BOTH]
    says = f"{LLAVA} takes images, not video."
    named = chat_body(part(), f"vqa:{LLAVA}")
    refused(await post("/v1/chat/completions", named), 400, "model", "video_not_supported", says)


PART = "messages[0].content[0]"


@pytest.mark.parametrize(
    ("media_part", "model", "param", "code"),
    [
        (part(), LLAVA, PART, "video_not_supported"),
        ({"type": "image_url", "image_url": {"url": URL}}, FILMS, PART, "image_not_supported"),
        (part(FILM[:1000]), BOTH, f"{PART}.video_url", "invalid_video"),
        (part(picture()), BOTH, f"{PART}.video_url", "invalid_video"),
        (
            {"type": "video_url", "video_url": {"url": "http://localhost/x.mp4"}},
            BOTH,
            f"{PART}.video_url",
            "invalid_video_url",
        ),
        (
            {"type": "video_url", "video_url": {"url": URL, "fps": 2}},
            BOTH,
            f"{PART}.video_url.fps",
            "unknown_parameter",
        ),
        ({"type": "video_url"}, BOTH, f"{PART}.video_url", "missing_required_parameter"),
    ],
)
async def test_a_wrong_part_is_refused_by_its_path(media_part: Any, model: str, param: str, code: str) -> None:
    refused(await post("/v1/chat/completions", chat_body(media_part, model)), 400, param, code)


async def test_conversation_with_an_image_and_a_video_is_refused() -> None:
    two = chat_body(part(), BOTH)
    two["messages"][0]["content"].append({"type": "image_url", "image_url": URL})
    refused(await post("/v1/chat/completions", two), 400, "messages[0].content[2]", "invalid_value", "second one")
    theirs = chat_body(part(), BOTH)
    theirs["messages"].insert(0, {"role": "assistant", "content": [part()]})
    refused(await post("/v1/chat/completions", theirs), 400, PART, "invalid_value", "Only a user message")


async def test_judge_gets_the_video() -> None:
    both = FakeEngine("a dog runs")
    body = {"video": url(FILM), "merge": "judge", "judge": BOTH}
    reply = (await post("/v1/tasks/caption", body, served(films=FakeEngine("a cat sits"), both=both))).json()
    assert reply["merged"]["method"] == "judge", json.dumps(reply["merged"])
    assert len(both.prompts) == 2 and all(prompt.video is not None for prompt in both.prompts)
    refused(await post("/v1/tasks/caption", body | {"judge": LLAVA}), 400, "judge", "video_not_supported")


# Hostile videos


async def test_video_that_no_model_takes_is_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: Any) -> None:
        raise AssertionError("a video was decoded that no model takes")

    monkeypatch.setattr(processes, "run_job", decoded)
    app = create_app(Router([Worker(MODELS[LLAVA], FakeEngine("red"))]))
    for body in (VQA, VQA | {"stream": True}, VQA | {"video": url(blinking(4000), "image/gif")}):
        refused(await post("/v1/tasks/vqa", body, app), 404, "models", "no_able_model")
    refused(await post("/v1/tasks/vqa", VQA | {"models": [LLAVA]}, app), 400, "models", "video_not_supported")
    for model, param, status in ((LLAVA, PART, 400), ("vqa", "model", 404), (f"vqa:{LLAVA}", "model", 400)):
        reply = await post("/v1/chat/completions", chat_body(part(), model), app)
        assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
async def test_animation_of_too_much_work_is_refused_by_tasks_and_chat(stream: bool) -> None:
    for data in (blinking(4000), blinking(100), blinking(1000, 1024, 768)):
        reply = await post("/v1/tasks/vqa", VQA | {"video": url(data, "image/gif"), "stream": stream})
        assert reply.status_code in (400, 413) and reply.json()["error"]["param"] == "video"
        for model in (FILMS, "vqa"):
            reply = await post("/v1/chat/completions", chat_body(part(data, "image/gif"), model, stream=stream))
            error = reply.json()["error"]
            assert reply.status_code in (400, 413)
            assert error["param"] == f"{PART}.video_url"


@pytest.mark.slow
async def test_surplus_videos_get_429_while_images_are_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    go, run_job = asyncio.Event(), processes.run_job

    async def slowly(job: processes.DecodeJob, data: bytes) -> Any:
        await go.wait()
        return await run_job(job, data)

    monkeypatch.setattr(processes, "run_job", slowly)
    app = served()
    async with calling(app) as client:
        films = [asyncio.create_task(client.post("/v1/tasks/vqa", json=VQA)) for _ in range(12)]
        still = await client.post("/v1/tasks/vqa", json={"image": URL, "question": "q"})
        assert still.status_code == 200
        done, _ = await asyncio.wait(films, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        go.set()
        replies = await asyncio.gather(*films)
    assert sorted(reply.status_code for reply in replies) == [200] * 10 + [429] * 2
    for reply in replies:
        if reply.status_code == 429:
            assert reply.headers["retry-after"] and reply.json()["error"]["param"] == "video"


@pytest.mark.slow
async def test_video_that_is_not_decoded_by_the_deadline_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(processes, "run_job", never)
    refused(await post("/v1/tasks/vqa", VQA | {"deadline_s": 0.2}), 503, "video", "deadline_exceeded")
