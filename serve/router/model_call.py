"""Follows a model through a request: measures times, collects text, and turns failures into replies."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Literal

from serve import tracing
from serve.accounting import current_account
from serve.errors import ModelError, ServeError
from serve.router.merge_streams import Ended, merge_streams
from serve.router.route import Deadline, Route
from serve.tasks.reply import Delta, Reply, ReplyError, Usage, Waiting
from serve.tasks.request import Request
from serve.tracing import REQUEST_ID

log = logging.getLogger(__name__)

CountTokens = Callable[[str, Usage], None]
"""A function that counts the tokens of the model of this name."""


class ModelCall:
    """A call to one model for one request.

    reply: the reply, once there is one. refusal: the model's error where that blames the request (status below 500).
    first_s: seconds until the first text. span: to be the parent of the model's stream.
    """

    def __init__(self, model: str, task: str, deadline: Deadline) -> None:
        self.model = model
        self.deadline = deadline
        self.reply: Reply | None = None
        self.refusal: ServeError | None = None
        self.first_s: float | None = None
        self._began = time.monotonic()
        self._texts: list[str] = []
        self._last: Delta | None = None
        self._waits_for = ""
        self.span = tracing.begin_model_call(model, task)
        self._closed = False
        current_account().calls[model] += 1

    def event(self, item: Waiting | Delta | Reply | Ended) -> Waiting | Delta | Reply:
        """Take the stream's next item. Return the event for the client: the item, or a failed reply at its end."""
        if isinstance(item, Waiting):
            self._waits_for = item.message
            return item
        if isinstance(item, Delta):
            self.record_text()
            self._waits_for = ""
            self._texts.append(item.text)
            self._last = item
            return item
        if isinstance(item, Ended):
            return self._failed(item.error or ModelError(f"{self.model} stopped without a reply.", code="engine_dead"))
        return self._replied(item)

    def given_up(self, others: int) -> Reply:
        """Return the reply of a model that is cut because enough others have answered."""
        return self._failure("timeout", "quorum_reached", f"Not waited for: {others} others had answered.")

    def record_text(self) -> None:
        """Record the time of the first text."""
        if self.first_s is None:
            self.first_s = self.seconds()

    def seconds(self) -> float:
        """Return the seconds since the call."""
        return time.monotonic() - self._began

    def usage(self) -> Usage:
        """Return the tokens of the reply, or until now where there is none yet."""
        if self.reply is not None:
            return self.reply.usage
        return Usage() if self._last is None else self._last.usage()

    def timeout(self) -> ModelError:
        """Return the error of a model that was cut at the deadline."""
        message = f"{self.model} had not finished after {self.deadline.seconds:g} s."
        if self._waits_for:
            message = f"{self.model} was still waiting after {self.deadline.seconds:g} s: {self._waits_for}."
        return ModelError(message, code="deadline_exceeded")

    def close(self, usage: Usage | None = None, reasons: Sequence[str] = (), code: str | None = None) -> None:
        """End the span, with the outcome where there is one. Later calls do nothing."""
        if self._closed:
            return
        self._closed = True
        if usage is not None:
            self.span.set_outcome(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
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
        current_account().reply_errors.add(error.code)
        reply = Reply(model=self.model, status=status, text="".join(self._texts), error=error, usage=self.usage())
        return self._replied(reply)

    def _replied(self, reply: Reply) -> Reply:
        self.reply = reply
        reply.latency_ms = round(self.seconds() * 1000, 1)
        if self.first_s is not None:
            reply.ttft_ms = round(self.first_s * 1000, 1)
        reasons = [reply.finish_reason] if reply.finish_reason else []
        self.close(reply.usage, reasons, reply.error.code if reply.error is not None else None)
        return reply


async def whole_reply(
    route: Route, task: str, request: Request, deadline: Deadline, count: CountTokens | None = None
) -> Reply:
    """Return one model's reply, which may be a failed one.

    count: called once, at the end, with the reply's tokens; where the caller is cancelled, with those until then.
    """
    call = ModelCall(route.model.name, task, deadline)
    try:
        async with aclosing(merge_streams([call.span.parent_of(route.answer(task, request))], deadline.at)) as streams:
            async for _, item in streams:
                if isinstance(event := call.event(item), Reply):
                    return event
    finally:
        if count is not None:
            count(call.model, call.usage())
        call.close()
    raise AssertionError("a call ends with a reply")
