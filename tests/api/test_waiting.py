"""A model that sleeps says in its column what it waits for, and shows its state everywhere."""

import io
import json
from typing import Any

import httpx
from rich.console import Console
from served import LLAVA, PALIGEMMA, URL, calling, frames, half_asleep, message

from serve.client.board import Board
from serve.router.merge_streams import Ended
from serve.router.model_call import ModelCall
from serve.router.route import Deadline
from serve.tasks.reply import Reply, Waiting

NOTICES = ["it waits for the place of b", "it is being woken"]
QUESTION = {"question": "what?", "image": URL}


async def post(path: str, body: dict[str, Any]) -> httpx.Response:
    async with calling(half_asleep()) as client:
        return await client.post(path, json=body)


async def test_task_stream_has_a_sleeping_models_reasons_to_wait() -> None:
    reply = await post("/v1/tasks/vqa", QUESTION | {"stream": True})
    events = [(event, json.loads(data)) for event, data in frames(reply.text)[:-1]]
    waits = [data for event, data in events if event == "waiting"]
    assert waits == [{"model": LLAVA, "message": notice} for notice in NOTICES]
    replies = {data["model"]: data["status"] for event, data in events if event == "reply"}
    assert replies == {LLAVA: "ok", PALIGEMMA: "ok"} and events[-1][0] == "merged"


async def test_completion_stream_has_the_reasons_in_the_models_choice() -> None:
    reply = await post("/v1/chat/completions", {"model": "vqa:*", "messages": [message()], "stream": True})
    choices = [json.loads(data)["choices"][0] for _, data in frames(reply.text)[:-1]]
    waits = [choice for choice in choices if choice.get("diptych", {}).get("status") == "waiting"]
    assert [(choice["index"], choice["delta"], choice["diptych"]["message"]) for choice in waits] == [
        (1, {"content": ""}, notice) for notice in NOTICES
    ]


async def test_completion_without_models_is_silent_about_waits() -> None:
    reply = await post("/v1/chat/completions", {"model": "vqa", "messages": [message()], "stream": True})
    assert "waiting" not in reply.text and '"finish_reason":"stop"' in reply.text


async def test_whole_answer_waits_and_has_no_notices() -> None:
    reply = (await post("/v1/tasks/vqa", QUESTION)).json()
    assert [column["status"] for column in reply["replies"]] == ["ok", "ok"]


async def test_timeout_names_the_models_reason_to_wait() -> None:
    call = ModelCall(LLAVA, "vqa", Deadline.after(2))
    call.event(Waiting(LLAVA, NOTICES[1]))
    late = call.event(Ended(TimeoutError()))
    assert isinstance(late, Reply) and late.error is not None
    assert late.error.message == f"{LLAVA} was still waiting after 2 s: {NOTICES[1]}."


async def test_state_and_wakes_are_shown_by_every_list() -> None:
    async with calling(half_asleep()) as client:
        ready = (await client.get("/ready")).json()
        entry = (await client.get(f"/v1/models/{LLAVA}")).json()["diptych"]
        awake = (await client.get(f"/v1/models/{PALIGEMMA}")).json()["diptych"]
        metrics = (await client.get("/metrics")).text
    assert ready["models"] == {LLAVA: "asleep", PALIGEMMA: "ready"} and ready["status"] == "ready"
    assert (entry["state"], entry["wakes"], awake["wakes"]) == ("asleep", {"count": 3, "last_s": 1.25}, None)
    assert f'diptych_model_state{{model="{LLAVA}",state="asleep"}} 1.0' in metrics
    assert f'diptych_model_wakes{{model="{LLAVA}"}} 3.0' in metrics
    assert f'diptych_model_wake_seconds{{model="{LLAVA}"}} 1.25' in metrics
    assert f'diptych_model_wakes{{model="{PALIGEMMA}"}}' not in metrics


def test_board_shows_a_columns_reason_to_wait() -> None:
    board = Board([LLAVA, PALIGEMMA])
    board.take("waiting", {"model": LLAVA, "message": NOTICES[1]})
    board.take("delta", {"model": PALIGEMMA, "text": "red"})
    console = Console(width=80, file=io.StringIO())
    console.print(board)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{NOTICES[1]} ..." in text and "waiting" in text and "speaking" in text
