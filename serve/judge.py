"""A served model that reads the image and all replies and writes the merged one."""

import asyncio
from collections.abc import Mapping, Sequence

from serve.column import Column
from serve.deadline import Deadline
from serve.errors import ServeError
from serve.route import Route
from serve.tasks.base import Judgement, Judging, Merged, Reply, ReplyError, Request
from serve.tasks.chat import ChatRequest, ChatResult
from serve.tasks.judging import judged, question

SHARE = 2 / 3  # of the deadline for the models, where a judge is to follow; it has what is left
STATUS_S = 2.0


class Judge:
    """Asks the first of `routes` that is ready, at temperature 0. Whatever goes wrong, there still is a merge."""

    def __init__(self, judging: Judging, routes: Sequence[Route]) -> None:
        self.judging = judging
        self.routes = routes

    async def merged(
        self,
        request: Request,
        replies: Sequence[Reply],
        weights: Mapping[str, float],
        instead: Merged,
        deadline: Deadline,
    ) -> Merged:
        """The judge's answer merged from replies that are ok, by `deadline`.

        instead: what the task's own method made of them: returned, with the reason, where the judge gave no answer,
        or where there is but one reply, and so nothing to judge.
        """
        if len(replies) < 2:
            return instead
        route = await self._ready(deadline)
        if route is None:
            names = ", ".join(route.model.name for route in self.routes)
            error = ReplyError(code="judge_not_ready", message=f"No judge is ready: {names}.")
            return _stands_in(instead, Judgement(model=None, error=error))
        column = Column("chat", self._question(request, replies), deadline)
        await column.ask(route)
        reply = await _last(column)
        judgement = Judgement(model=route.model.name, error=reply.error, usage=reply.usage)
        if not isinstance(reply.result, ChatResult):
            return _stands_in(instead, judgement)
        return await asyncio.to_thread(
            judged, self.judging, reply.result.text.strip(), judgement, replies, weights
        )  # as long as the replies are, it compares them

    def _question(self, request: Request, replies: Sequence[Reply]) -> ChatRequest:
        """Not validated: the replies may be longer than what a person may ask."""
        words = question(self.judging, request, replies)
        return ChatRequest.model_construct(
            image=request.image, video=request.video, question=words, max_tokens=request.max_tokens
        )

    async def _ready(self, deadline: Deadline) -> Route | None:
        for route in self.routes:
            try:
                status = await asyncio.wait_for(route.status(), min(STATUS_S, deadline.left()))
            except (TimeoutError, ServeError):
                continue
            if status.state == "ready":
                return route
        return None


async def _last(column: Column) -> Reply:
    while not isinstance(event := await column.events.get(), Reply):
        pass
    return event


def _stands_in(merged: Merged, judgement: Judgement) -> Merged:
    return merged.model_copy(update={"judge": judgement})
