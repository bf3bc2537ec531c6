"""One model's part in one request: its times, words and span, and its failure as its own reply."""

import logging
import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Literal

from serve import tracing
from serve.errors import ModelError, ServeError
from serve.request_id import REQUEST_ID
from serve.router.deadline import Deadline
from serve.router.merge_streams import Ended, merge_streams
from serve.router.route import Route
from serve.tasks.base import Delta, Reply, ReplyError, Request, Usage

log = logging.getLogger(__name__)


class ModelCall:
    """Follows one model through one request, from the call to its last word.

    reply: the whole reply, once there is one. refusal: the model's error where it says that the request is at fault.
    first_s: seconds until the first words. span: the model's stream is to be started under it.
    """

    def __init__(self, model: str, task: str, deadline: Deadline) -> None:
        self.model = model
        self.deadline = deadline
        self.reply: Reply | None = None
        self.refusal: ServeError | None = None
        self.first_s: float | None = None
        self._began = time.monotonic()
        self._texts: list[str] = []
        self.span = tracing.asking(model, task)
        self._closed = False

    def event(self, item: Delta | Reply | Ended) -> Delta | Reply:
        """Take the stream's next item. Return what the client gets: the item, or the reply that it failed."""
        if isinstance(item, Delta):
            self.spoke()
            self._texts.append(item.text)
            return item
        if isinstance(item, Ended):
            return self._failed(item.error or ModelError(f"{self.model} stopped without a reply.", code="engine_dead"))
        return self._replied(item)

    def given_up(self, others: int) -> Reply:
        """Return the reply of a model that nobody waits for, because enough others have answered."""
        return self._failure("timeout", "quorum_reached", f"Not waited for: {others} others had answered.")

    def spoke(self) -> None:
        """Note the time of the first words."""
        if self.first_s is None:
            self.first_s = self.seconds()

    def seconds(self) -> float:
        """Return the seconds since the call."""
        return time.monotonic() - self._began

    def timeout(self) -> ModelError:
        """Return the error of a model that was cut at the deadline."""
        message = f"{self.model} had not finished after {self.deadline.seconds:g} s."
        return ModelError(message, code="deadline_exceeded")

    def close(self, usage: Usage | None = None, reasons: Sequence[str] = (), code: str | None = None) -> None:
        """End the span, with the outcome where there is one; the first time counts."""
        if self._closed:
            return
        self._closed = True
        if usage is not None:
            self.span.answered(
                read=usage.prompt_tokens,
                spoke=usage.completion_tokens,
                reasons=reasons,
                first_s=self.first_s,
                code=code,
            )
        self.span.end()

    def _failed(self, error: BaseException) -> Reply:
        if isinstance(error, TimeoutError):
            late = self.timeout()
            return self._failure("timeout", late.code, late.message)
        if isinstance(error, ServeError):
            if error.status < 500:
                self.refusal = error
            return self._failure("error", error.code, error.message)
        log.error("request %s: model %s failed", REQUEST_ID.get(), self.model, exc_info=error)
        return self._failure("error", "internal_error", f"{self.model} failed unexpectedly.")

    def _failure(self, status: Literal["error", "timeout"], code: str | None, message: str) -> Reply:
        error = ReplyError(code=code or "model_error", message=message)
        return self._replied(Reply(model=self.model, status=status, text="".join(self._texts), error=error))

    def _replied(self, reply: Reply) -> Reply:
        self.reply = reply
        reply.latency_ms = round(self.seconds() * 1000, 1)
        if self.first_s is not None:
            reply.ttft_ms = round(self.first_s * 1000, 1)
        reasons = [reply.finish_reason] if reply.finish_reason else []
        self.close(reply.usage, reasons, reply.error.code if reply.error is not None else None)
        return reply


async def whole_reply(route: Route, task: str, request: Request, deadline: Deadline) -> Reply:
    """Return one model's reply, its failure included."""
    call = ModelCall(route.model.name, task, deadline)
    try:
        async with aclosing(merge_streams([call.span.start_of(route.answer(task, request))], deadline.at)) as streams:
            async for _, item in streams:
                if isinstance(event := call.event(item), Reply):
                    return event
    finally:
        call.close()
    raise AssertionError("a call ends with a reply")
