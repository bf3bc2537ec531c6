"""Merges the models' replies into one."""

import asyncio
from collections.abc import Mapping, Sequence

from serve import tracing
from serve.errors import NoAnswer, ParseError
from serve.router.route import Deadline
from serve.tasks import TASKS
from serve.tasks.reply import Merged, Reply, ReplyError
from serve.tasks.request import Request

SHORT = 500
FEW = 8
"""Up to FEW replies with up to SHORT characters together are merged on the event loop; a thread would take longer.
Beyond that the cost grows with their length and with the square of their number."""
MAX_UNREADABLE = 8192
"""Characters that are sent of the text of a reply where no reply can be read."""
MERGE_S = 1.0
"""Seconds that a merge may take after the deadline: where a model is late, the merge begins at the deadline."""
ROUNDING = 1e-6
"""Equal boxes, fused, lie this little apart: their models agree wholly."""


async def merge_replies(
    task: str, request: Request, replies: Sequence[Reply], weights: Mapping[str, float], deadline: Deadline
) -> Merged:
    """Call `merge` with a span of its own, in a thread where it may take long.

    Raises as `merge`, and Unavailable where it takes longer than MERGE_S past the deadline.
    """
    with tracing.begin(f"merge {task}", attributes={"diptych.task": task, "diptych.models": len(replies)}) as span:
        if TASKS[task].heavy or len(replies) > FEW or sum(len(reply.text) for reply in replies) > SHORT:
            merged = await _merged_in_time(task, request, replies, weights, deadline)
        else:
            merged = merge(task, request, replies, weights)
        span.set({"diptych.merge.method": merged.method, "diptych.agreement": merged.agreement})
    return merged


def merge(task: str, request: Request, replies: Sequence[Reply], weights: Mapping[str, float] | None = None) -> Merged:
    """Merge replies (in catalogue order) by the request's method, or the task's own where a judge follows.

    weights: by model; default: the request's. Raises Unavailable when no reply is ok, with the code of ParseError where
    every reply failed with that, since a retry would give the same.
    """
    usable = [reply for reply in replies if is_answer(reply)]
    if not usable:
        raise _no_answer(replies)
    methods = TASKS[task].methods
    method = methods.get(request.merge or "", next(iter(methods.values())))
    merged = method(usable, (request.weights or {}) if weights is None else weights)
    return abstain(merged, request.min_agreement)


def abstain(merged: Merged, min_agreement: float | None) -> Merged:
    """Return the merged reply, with an error in place of its result where the models agree less than this."""
    if min_agreement is None or merged.agreement >= min_agreement - ROUNDING:
        return merged
    message = f"The models disagree: their agreement is {merged.agreement:.3g}, less than {min_agreement:.3g}."
    error = ReplyError(code="models_disagree", message=message)
    return merged.model_copy(update={"result": None, "supporters": [], "error": error})


def is_answer(reply: Reply) -> bool:
    """Return whether the reply has a result to merge."""
    return reply.status == "ok" and reply.result is not None


async def _merged_in_time(
    task: str, request: Request, replies: Sequence[Reply], weights: Mapping[str, float], deadline: Deadline
) -> Merged:
    try:
        async with asyncio.timeout_at(asyncio.get_running_loop().time() + deadline.left() + MERGE_S):
            return await asyncio.to_thread(merge, task, request, replies, weights)
    except TimeoutError:
        raise deadline.passed("The merge of the replies") from None


def _no_answer(replies: Sequence[Reply]) -> NoAnswer:
    messages = [(reply.model, reply.error.message) for reply in replies if reply.error]
    why = " ".join(message if model in message else f"{model}: {message}" for model, message in messages)
    unreadable = all(reply.error is not None and reply.error.code == ParseError.code for reply in replies)
    error = NoAnswer(f"No model answered. {why}", code=ParseError.code if unreadable else "no_model_answered")
    if unreadable:
        error.replies = [
            {**reply.model_dump(mode="json", include={"model", "status", "error"}), "text": reply.text[:MAX_UNREADABLE]}
            for reply in replies
        ]
    return error
