"""What the users send, about whatever the server says that it serves. Knows no locust."""

import itertools
import json
import os
import random
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from loadtest.pictures import QUESTION, body, data_url, scenes
from serve.client.http_client import Server
from serve.tasks import TASKS


class Nothing(Exception):
    """The server has nothing that could be asked; the sentence says why."""


@dataclass(frozen=True)
class Ask:
    """One request. door: chat and which model, task, fan-out; name: the same with the task; models: whose columns must
    be in the answer, none for a chat with one model."""

    path: str
    door: str
    name: str
    body: bytes
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Served:
    """What can be asked about a picture. models: alone; tasks: with the models that answer each."""

    models: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]

    @classmethod
    def by(cls, url: str, tasks: str = "") -> "Served":
        """Asks the server. tasks: the only ones wanted, by commas; all where empty. Raises Nothing, client.Failure."""
        with Server(url, os.environ.get("DIPTYCH_API_KEY")) as server:
            cards, listed, states = (server.get("/v1/catalog"), server.get("/v1/models"), server.ready()["models"])
        seeing = {card["id"] for card in cards["data"] if card["served"] and card["images"]}
        ready = tuple(name for name, state in states.items() if state == "ready" and name in seeing)
        if not ready:
            told = ", ".join(f"{name} {state}" for name, state in states.items()) or "none is served"
            raise Nothing(f"No model at {url} can answer about a picture now: {told}.")
        able = {
            entry["id"]: tuple(name for name in entry["diptych"]["models"] if name in seeing)
            for entry in listed["data"]
            if entry["diptych"]["kind"] == "task" and entry["id"] in TASKS
        }
        wanted = [task.strip() for task in tasks.split(",") if task.strip()] or list(able)
        if missing := [task for task in wanted if not able.get(task)]:
            raise Nothing(f"No model at {url} does {', '.join(missing)} about a picture; tasks: {', '.join(able)}.")
        return cls(ready, {task: able[task] for task in wanted if able[task]})


class Asks:
    """Draws requests: models and tasks evenly, each about a scene that nobody has seen, or `repeat` ones in turn."""

    def __init__(self, served: Served, *, size: str, repeat: int, tokens: int) -> None:
        drawn = scenes(size, secrets.randbits(32))
        self.scenes: Iterator[tuple[bytes, list[str]]] = drawn
        if repeat:
            self.scenes = itertools.cycle(list(itertools.islice(drawn, repeat)))
        self.served = served
        self.tokens = tokens

    def chat(self, stream: bool) -> Ask:
        """One model alone, by OpenAI's door. The reply is exactly as long as it was wished."""
        model = random.choice(self.served.models)
        picture, _ = next(self.scenes)
        sent = body(model, picture, tokens=self.tokens, stream=stream)
        return Ask("/v1/chat/completions", f"chat {model}", f"chat {model}", sent)

    def task(self, stream: bool) -> Ask:
        """All models that can, by the task's own door."""
        task, models = random.choice(list(self.served.tasks.items()))
        picture, labels = next(self.scenes)
        field = TASKS[task].text_field
        text = {} if field is None else {field: labels if field == "labels" else QUESTION}
        sent = json.dumps({"image": data_url(picture), "stream": stream, **text}).encode()
        return Ask(f"/v1/tasks/{task}", "task", f"task {task}", sent, models)

    def fan_out(self, stream: bool) -> Ask:
        """The same by OpenAI's door: choice 0 is the merged reply, the others are the models'."""
        task, models = random.choice(list(self.served.tasks.items()))
        picture, labels = next(self.scenes)
        text = "; ".join(labels) if TASKS[task].text_field == "labels" else QUESTION
        sent = body(f"{task}:*", picture, text=text, stream=stream)
        return Ask("/v1/chat/completions", "fan-out", f"fan-out {task}:*", sent, models)
