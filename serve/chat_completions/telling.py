"""A fan-out's events as the chunks of one completion."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve.chat_completions.replies import Chunks, Head, finish_reason
from serve.chat_completions.request import StreamOptions
from serve.tasks import TASKS
from serve.tasks.base import Delta, Event, Merged, Reply, Usage
from serve.wire.fan_out import judged, total


@dataclass(frozen=True)
class Asked:
    """Which task, of which models (in catalogue order), and whether each model's reply is wanted beside the merged."""

    task: str
    models: list[str]
    each: bool


class Telling:
    """Choice 0 is the merged reply, choices 1..N are the models' where each is wanted."""

    def __init__(self, head: Head, options: StreamOptions | None, asked: Asked) -> None:
        self.chunks = Chunks(head, options, lambda: total(self.usages))
        self.asked = asked
        self.index = {name: at for at, name in enumerate(asked.models, start=1)}
        self.announced = False
        self.heard: set[str] = set()
        self.usages: list[Usage] = []

    def frames(self, event: Event) -> Iterator[bytes]:
        if not self.announced and (self.asked.each or not isinstance(event, Reply) or event.status == "ok"):
            self.announced = True
            yield from self._announce()
        if isinstance(event, Reply):
            self.usages.append(event.usage)
        if isinstance(event, Merged):
            self.usages += judged(event)
            yield from self._merged(event)
        elif self.asked.each:
            yield from self._column(event)

    def last(self) -> bytes:
        return self.chunks.last()

    def _column(self, event: Delta | Reply) -> Iterator[bytes]:
        at = self.index[event.model]
        if event.text and (isinstance(event, Delta) or event.model not in self.heard):
            yield self.chunks.words(at, event.text)
        self.heard.add(event.model)
        if isinstance(event, Reply):
            about = about_reply(self.asked.task, event)
            yield self.chunks.finish(at, finish_reason(event.finish_reason), diptych=about)

    def _merged(self, merged: Merged) -> Iterator[bytes]:
        words = TASKS[self.asked.task].words(merged.result)
        yield self.chunks.words(0, words)
        about = about_merged(self.asked.task, merged)
        yield self.chunks.finish(0, "stop", diptych=about)

    def _announce(self) -> Iterator[bytes]:
        """Open every choice in the order of its index, before one speaks: openai's stream helper counts on it."""
        models = [None, *(self.asked.models if self.asked.each else [])]
        for at, model in enumerate(models):
            yield self.chunks.role(at, diptych={"model": model, "task": self.asked.task, "status": "speaking"})


def about_reply(task: str, reply: Reply) -> dict[str, Any]:
    """Whose words a choice holds and what they mean; the words themselves are the choice's content."""
    return {"model": reply.model, "task": task, **reply.model_dump(mode="json", exclude={"model", "text"})}


def about_merged(task: str, merged: Merged) -> dict[str, Any]:
    """How the merged reply was reached. It is no one model's."""
    return {"model": None, "task": task, "status": "ok", **merged.model_dump(mode="json")}
