"""Writes the events of a fan-out as chunks of a streamed completion."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serve.api.chat_completions.request import StreamOptions
from serve.api.chat_completions.response import CompletionHead, finish_reason
from serve.api.events import judge_usage, total_usage
from serve.router.route import Route
from serve.tasks import TASKS
from serve.tasks.reply import Delta, Event, Merged, Reply, Usage, Waiting

DISAGREE = "The models disagree."


@dataclass(frozen=True)
class FanOutTarget:
    """A task, and its models in catalogue order. with_replies: include every model's own reply. named: the request
    names the models."""

    task: str
    routes: Sequence[Route]
    with_replies: bool
    named: bool = False

    @property
    def models(self) -> list[str]:
        return [route.model.name for route in self.routes]


class ChunkWriter:
    """Writes the merged reply as choice 0 and, with target.with_replies, the models' replies as choices 1..N."""

    def __init__(self, head: CompletionHead, options: StreamOptions | None, target: FanOutTarget) -> None:
        self.chunks = head.events(options, lambda: total_usage(self.usages))
        self.target = target
        self.index = {name: index for index, name in enumerate(target.models, start=1)}
        self.announced = False
        self.with_text: set[str] = set()
        self.usages: list[Usage] = []

    def write(self, event: Event) -> Iterator[bytes]:
        # Where only the merged reply was wanted, failures and waits announce nothing: if all fail, it is a 503.
        good = isinstance(event, Delta | Merged) or (isinstance(event, Reply) and event.status == "ok")
        if not self.announced and (self.target.with_replies or good):
            self.announced = True
            yield self._announce()
        if isinstance(event, Reply):
            self.usages.append(event.usage)
        if isinstance(event, Merged):
            self.usages += judge_usage(event)
            yield from self._merged_chunks(event)
        elif self.target.with_replies:
            yield from self._model_chunks(event)

    def last(self) -> bytes:
        return self.chunks.last()

    def _model_chunks(self, event: Waiting | Delta | Reply) -> Iterator[bytes]:
        index = self.index[event.model]
        if isinstance(event, Waiting):
            about = {"model": event.model, "task": self.target.task, "status": "waiting", "message": event.message}
            yield self.chunks.text(index, "", diptych=about)
            return
        if isinstance(event, Delta) or event.model not in self.with_text:
            if event.reasoning:
                yield self.chunks.reasoning(index, event.reasoning)
            if event.text:
                yield self.chunks.text(index, event.text)
        self.with_text.add(event.model)
        if isinstance(event, Reply):
            about = about_reply(self.target.task, event)
            yield self.chunks.finish(index, finish_reason(event.finish_reason), diptych=about)

    def _merged_chunks(self, merged: Merged) -> Iterator[bytes]:
        yield self.chunks.text(0, merged_text(self.target.task, merged))
        yield self.chunks.finish(0, "stop", diptych=about_merged(self.target.task, merged))

    def _announce(self) -> bytes:
        """Open every choice. Its `diptych` has the model (None for the merged reply), the task, and the status
        "speaking"."""
        models = [None, *(self.target.models if self.target.with_replies else [])]
        about = [{"model": model, "task": self.target.task, "status": "speaking"} for model in models]
        return self.chunks.open([{"diptych": fields} for fields in about])


def about_reply(task: str, reply: Reply) -> dict[str, Any]:
    """Return a choice's `diptych` field: the reply without its text and reasoning, which are the choice's message."""
    exclude = {"model", "text", "reasoning"}
    return {"model": reply.model, "task": task, **reply.model_dump(mode="json", exclude=exclude)}


def about_merged(task: str, merged: Merged) -> dict[str, Any]:
    """Return the `diptych` field of choice 0: the merged reply."""
    status = "ok" if merged.error is None else "error"
    return {"model": None, "task": task, "status": status, **merged.model_dump(mode="json")}


def merged_text(task: str, merged: Merged) -> str:
    """Return the text of choice 0: the merged result, or that there is none."""
    return DISAGREE if merged.error is not None else TASKS[task].as_text(merged.result)
