"""A served model that reads the image and all replies and writes the merged one."""

import asyncio
from collections.abc import Mapping, Sequence

from serve.errors import ServeError
from serve.router.model_call import CountTokens, whole_reply
from serve.router.route import Deadline, Route
from serve.tasks.base import Judging
from serve.tasks.chat import ChatRequest, ChatResult
from serve.tasks.judging import judged, question
from serve.tasks.reply import Judgement, Merged, Reply, ReplyError
from serve.tasks.request import Request

SHARE = 2 / 3
"""Share of the deadline that the models get where a judge follows; the judge gets the rest."""
STATUS_S = 2.0


class Judge:
    """Asks the first ready model of `routes`, or the first that sleeps. Where that fails, the fallback is returned."""

    def __init__(self, judging: Judging, routes: Sequence[Route]) -> None:
        self.judging = judging
        self.routes = routes

    async def merged(
        self,
        request: Request,
        replies: Sequence[Reply],
        weights: Mapping[str, float],
        fallback: Merged,
        deadline: Deadline,
        count: CountTokens | None = None,
    ) -> Merged:
        """Merge replies that are ok by asking the judge, until `deadline`.

        fallback: the replies merged by the task's own method. It is returned, with the reason, where the judge gives no
        answer, and without one where there are fewer than two replies. count: as for `whole_reply`.
        """
        if len(replies) < 2:
            return fallback
        route = await self._ready(deadline)
        if route is None:
            names = ", ".join(route.model.name for route in self.routes)
            error = ReplyError(code="judge_not_ready", message=f"No judge is ready: {names}.")
            return _with_judgement(fallback, Judgement(model=None, error=error))
        reply = await whole_reply(route, "chat", self._question(request, replies), deadline, count)
        judgement = Judgement(model=route.model.name, error=reply.error, usage=reply.usage)
        if not isinstance(reply.result, ChatResult):
            return _with_judgement(fallback, judgement)
        return await asyncio.to_thread(  # it compares the replies, however long they are
            judged, self.judging, reply.result.text.strip(), judgement, replies, weights
        )

    def _question(self, request: Request, replies: Sequence[Reply]) -> ChatRequest:
        """Return the request to the judge. It is not validated: with the replies it may exceed a question's limit."""
        text = question(self.judging, request, replies)
        return ChatRequest.model_construct(
            image=request.image,
            video=request.video,
            question=text,
            max_tokens=request.max_tokens,
            priority=request.priority,
            reasoning_effort="none",
        )

    async def _ready(self, deadline: Deadline) -> Route | None:
        """Return the first route that is ready; where none is, the first that sleeps."""
        asleep: Route | None = None
        for route in self.routes:
            try:
                status = await asyncio.wait_for(route.status(), min(STATUS_S, deadline.left()))
            except (TimeoutError, ServeError):
                continue
            if status.state == "ready":
                return route
            if status.state == "asleep":
                asleep = asleep or route
        return asleep


def _with_judgement(merged: Merged, judgement: Judgement) -> Merged:
    return merged.model_copy(update={"judge": judgement})
