"""One model's side of a fan-out: what it says as events, its failure as its own reply."""

import asyncio
import logging
import time
from typing import Literal

from serve import tracing
from serve.deadline import Deadline
from serve.errors import ModelError, ServeError
from serve.request_id import REQUEST_ID
from serve.route import Route
from serve.tasks.base import Delta, Reply, ReplyError, Request

log = logging.getLogger(__name__)


class Column:
    """Each model's side of a fan-out: its events into the common queue, its failures into its own Reply.

    deadline: when models that are still speaking are cut.
    """

    def __init__(self, task: str, request: Request, deadline: Deadline) -> None:
        self.task = task
        self.request = request
        self.deadline = deadline
        self.began = time.monotonic()
        self.events: asyncio.Queue[Delta | Reply] = asyncio.Queue()
        self.heard: dict[str, tuple[float, str]] = {}
        self.refusals: dict[str, ServeError] = {}
        self.spans: dict[str, tracing.Span] = {}

    async def ask(self, route: Route) -> None:
        name = route.model.name
        span = self.spans[name] = tracing.asking(name, self.task)
        span.enter()
        try:
            async with asyncio.timeout_at(self.deadline.at):
                await self._listen(route)
        except TimeoutError:
            said = f"{name} had not finished after {self.deadline.seconds:g} s."
            self.events.put_nowait(self.failed(name, "timeout", "deadline_exceeded", said))
        except ServeError as error:
            if error.status < 500:
                self.refusals[name] = error
            self.events.put_nowait(self.failed(name, "error", error.code or "model_error", error.message))
        except Exception:  # a bug in one model's path costs that model's column only
            log.exception("request %s: model %s failed", REQUEST_ID.get(), name)
            self.events.put_nowait(self.failed(name, "error", "internal_error", f"{name} failed unexpectedly."))
        finally:
            span.end()

    async def _listen(self, route: Route) -> None:
        answer = route.answer(self.task, self.request)
        try:
            async for event in answer:
                if isinstance(event, Delta):
                    first, text = self.heard.get(event.model, (self._elapsed_ms(), ""))
                    self.heard[event.model] = (first, text + event.text)
                else:
                    self._time(event)
                self.events.put_nowait(event)
                if isinstance(event, Reply):
                    return
            raise ModelError(f"{route.model.name} stopped without a reply.", code="engine_dead")
        finally:
            await answer.aclose()

    def failed(self, model: str, status: Literal["error", "timeout"], code: str, message: str) -> Reply:
        text = self.heard.get(model, (0.0, ""))[1]
        reply = Reply(model=model, status=status, text=text, error=ReplyError(code=code, message=message))
        self._time(reply)
        return reply

    def given_up(self, model: str, needed: int) -> Reply:
        return self.failed(model, "timeout", "quorum_reached", f"Not waited for: {needed} others had answered.")

    def _time(self, reply: Reply) -> None:
        reply.latency_ms = round(self._elapsed_ms(), 1)
        if reply.model in self.heard:
            reply.ttft_ms = round(self.heard[reply.model][0], 1)
        self._tell(reply)

    def _tell(self, reply: Reply) -> None:
        """What it came to, into its span."""
        span = self.spans.get(reply.model, tracing.NONE)
        span.answered(
            read=reply.usage.prompt_tokens,
            spoke=reply.usage.completion_tokens,
            reasons=[reply.finish_reason] if reply.finish_reason else [],
            first_s=reply.ttft_ms / 1000 if reply.ttft_ms is not None else None,
            code=reply.error.code if reply.error is not None else None,
        )

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self.began) * 1000
