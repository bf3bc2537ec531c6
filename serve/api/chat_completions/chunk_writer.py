"""A fan-out's events as the chunks of one completion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serve.api.chat_completions.replies import Chunks, Head, finish_reason
from serve.api.chat_completions.request import StreamOptions
from serve.api.events import judge_usage, total_usage
from serve.router.route import Route
from serve.tasks import TASKS
from serve.tasks.base import Delta, Event, Merged, Reply, Usage


@dataclass(frozen=True)
class FanOutTarget:
    """A task, and the models to ask in catalogue order. each: whether every model's own reply is wanted, too."""

    task: str
    routes: Sequence[Route]
    each: bool

    @property
    def models(self) -> list[str]:
        return [route.model.name for route in self.routes]


class ChunkWriter:
    """Writes the merged reply as choice 0, and where each is wanted the models' replies as choices 1..N."""

    def __init__(self, head: Head, options: StreamOptions | None, target: FanOutTarget) -> None:
        self.chunks = Chunks(head, options, lambda: total_usage(self.usages))
        self.target = target
        self.index = {name: index for index, name in enumerate(target.models, start=1)}
        self.announced = False
        self.speaking: set[str] = set()
        self.usages: list[Usage] = []

    def frames(self, event: Event) -> Iterator[bytes]:
        if not self.announced and (self.target.each or not isinstance(event, Reply) or event.status == "ok"):
            self.announced = True
            yield from self._announce()
        if isinstance(event, Reply):
            self.usages.append(event.usage)
        if isinstance(event, Merged):
            self.usages += judge_usage(event)
            yield from self._merged(event)
        elif self.target.each:
            yield from self._of_model(event)

    def last(self) -> bytes:
        return self.chunks.last()

    def _of_model(self, event: Delta | Reply) -> Iterator[bytes]:
        index = self.index[event.model]
        if event.text and (isinstance(event, Delta) or event.model not in self.speaking):
            yield self.chunks.words(index, event.text)
        self.speaking.add(event.model)
        if isinstance(event, Reply):
            about = about_reply(self.target.task, event)
            yield self.chunks.finish(index, finish_reason(event.finish_reason), diptych=about)

    def _merged(self, merged: Merged) -> Iterator[bytes]:
        yield self.chunks.words(0, TASKS[self.target.task].words(merged.result))
        yield self.chunks.finish(0, "stop", diptych=about_merged(self.target.task, merged))

    def _announce(self) -> Iterator[bytes]:
        """Open every choice in the order of its index, before any has text: openai's stream helper counts on it."""
        models = [None, *(self.target.models if self.target.each else [])]
        for index, model in enumerate(models):
            yield self.chunks.role(index, diptych={"model": model, "task": self.target.task, "status": "speaking"})


def about_reply(task: str, reply: Reply) -> dict[str, Any]:
    """Return the reply that a choice holds, but for its text, which is the choice's content."""
    return {"model": reply.model, "task": task, **reply.model_dump(mode="json", exclude={"model", "text"})}


def about_merged(task: str, merged: Merged) -> dict[str, Any]:
    """Return how the merged reply was reached, which is no single model's."""
    return {"model": None, "task": task, "status": "ok", **merged.model_dump(mode="json")}
