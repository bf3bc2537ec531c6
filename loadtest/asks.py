"""Requests of the load test's users, for the models and tasks that the server lists. Knows no locust."""

import itertools
import json
import os
import random
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from loadtest.pictures import body, data_url, scenes
from serve.client.http_client import Server
from serve.tasks import TASKS
from serve.tasks.base import Task


class Nothing(Exception):
    """The server has nothing that could be asked; the sentence says why."""


@dataclass(frozen=True)
class Ask:
    """A request to send. models: whose replies must be in the response; empty for a chat with one model.

    door: the kind of request ("chat" with its model, "task", "fan-out"); name: the same with the task.
    """

    path: str
    door: str
    name: str
    body: bytes
    models: tuple[str, ...] = ()


@dataclass(frozen=True)
class Served:
    """A server's offer. models: those that can be asked about an image; tasks: with the models that can do each."""

    models: tuple[str, ...]
    tasks: Mapping[str, tuple[str, ...]]

    @classmethod
    def by(cls, url: str, tasks: str = "") -> "Served":
        """Ask the server for its offer. tasks: the only ones wanted, by commas; all where empty.

        Raises Nothing, and Failure where there is no server.
        """
        with Server(url, os.environ.get("DIPTYCH_API_KEY")) as server:
            cards, listed, states = (server.get("/v1/catalog"), server.get("/v1/models"), server.ready()["models"])
        seeing = {card["id"] for card in cards["data"] if card["served"] and card["images"]}
        ready = tuple(name for name, state in states.items() if state == "ready" and name in seeing)
        if not ready:
            listing = ", ".join(f"{name} {state}" for name, state in states.items()) or "none is served"
            raise Nothing(f"No model at {url} can answer about a picture now: {listing}.")
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
        """Ask one model by /v1/chat/completions for a reply of exactly `tokens` tokens."""
        model = random.choice(self.served.models)
        picture, _ = next(self.scenes)
        sent = body(model, picture, tokens=self.tokens, stream=stream)
        return Ask("/v1/chat/completions", f"chat {model}", f"chat {model}", sent)

    def task(self, stream: bool) -> Ask:
        """Ask all models that can by /v1/tasks/{task}."""
        task, models = random.choice(list(self.served.tasks.items()))
        picture, labels = next(self.scenes)
        sent = json.dumps({"image": data_url(picture), "stream": stream, **_fields(TASKS[task], labels)}).encode()
        return Ask(f"/v1/tasks/{task}", "task", f"task {task}", sent, models)

    def fan_out(self, stream: bool) -> Ask:
        """Ask all models that can by /v1/chat/completions: choice 0 is the merged reply, the others are the models'."""
        task, models = random.choice(list(self.served.tasks.items()))
        picture, labels = next(self.scenes)
        entry = TASKS[task]
        sent = body(f"{task}:*", picture, text=entry.written(_fields(entry, labels)), stream=stream)
        return Ask("/v1/chat/completions", "fan-out", f"fan-out {task}:*", sent, models)


def _fields(task: Task, labels: list[str]) -> Mapping[str, Any]:
    """Return the request's fields without the image: the example's; of phrases as many different labels as the task
    takes, or, where there are too few, the example's."""
    different = list(dict.fromkeys(labels))
    if task.text_field is None or not task.takes_phrases or len(different) < (task.min_phrases or 0):
        return task.example
    return {**task.example, task.text_field.name: different[: task.max_phrases]}
