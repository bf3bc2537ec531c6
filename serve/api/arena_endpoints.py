"""The blind arena: POST /v1/arena/duels/{task}, POST /v1/arena/votes, GET /v1/arena/board."""

import functools
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request as HttpRequest

from serve.api import openapi_schema
from serve.api.body import read_json, read_task_request
from serve.api.quotas import Buckets
from serve.api.responses import cancel_on_disconnect
from serve.api.services import services, set_up
from serve.api.task_endpoint import ImageSize
from serve.arena.board import ArenaBoard, Voters
from serve.arena.duel import (
    IncompleteDuel,
    answer_duel,
    check_fields,
    draw_pair,
    family_name,
    find_judge,
    judge_duel,
    related,
)
from serve.arena.store import EXPIRY_S, VoteFile, VoteStore
from serve.arena.votes import Choice, Seat, Vote, VoteId
from serve.errors import NotFound, TooMany
from serve.tasks import TASKS

OFF = "There is no arena here: the operator opens it by gateway.arena, a file for its votes."
VOTES_A_MINUTE = 60
"""Of each key, or of each address where there are no keys."""
ADDRESSES = 4096
"""Numbers that addresses are counted by, so that the counts stay few."""


class HiddenAnswer(BaseModel):
    """An answer without its model's name. Both of a duel have the same form."""

    result: dict[str, Any]


class Duel(BaseModel):
    """Two answers to choose from, before the vote."""

    id: str
    object: Literal["diptych.duel"] = "diptych.duel"
    task: str
    image: ImageSize
    left: HiddenAnswer
    right: HiddenAnswer
    expires_s: float = Field(default=EXPIRY_S, description="Seconds in which the vote may come.")


class VoteRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    duel: VoteId = Field(description="The duel's id. A vote that is sent again counts once.")
    choice: Choice


class JudgeChoice(BaseModel):
    """A judge's choice. abstained: it contradicted itself with the seats swapped. own_family: seats of its family."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
    family: str
    choice: str
    own_family: int


class VoteAnswer(BaseModel):
    """A vote that is stored, and who gave the answers."""

    id: str
    object: Literal["diptych.vote"] = "diptych.vote"
    task: str
    choice: Choice
    left: Seat
    right: Seat
    judges: list[JudgeChoice]


def add_arena(api: APIRouter, tasks: Sequence[str]) -> None:
    """Add the arena's routes, which answer 404 where it is closed."""
    conflict: dict[int | str, dict[str, Any]] = {409: {"description": "The duel has another vote already."}}

    for name in tasks:
        task = TASKS[name]
        api.add_api_route(
            f"/v1/arena/duels/{name}",
            _duel_route(name),
            methods=["POST"],
            tags=["arena"],
            operation_id=f"duel_{name}",
            summary=f"{task.title}: two models' answers, without names",
            openapi_extra=openapi_schema.task_body(task.request),
        )

    @api.post("/v1/arena/duels/{task}", include_in_schema=False)
    async def unknown(http: HttpRequest, task: str) -> Duel:
        opened(http)
        raise _no_task(task)

    @api.post(
        "/v1/arena/votes",
        tags=["arena"],
        summary="Choose an answer; then the names are told",
        openapi_extra=openapi_schema.json_body(VoteRequest),
        responses=conflict,
    )
    async def vote(http: HttpRequest) -> VoteAnswer:
        votes = opened(http)
        limit_votes(services(http).vote_limiter, http)
        given = await read_json(http, VoteRequest)
        key = getattr(http.state, "key", None) or ""
        stored = await votes.call(lambda file: file.vote(given.duel, given.choice, key))
        judged = await votes.call(lambda file: file.judge_votes(given.duel))
        judges = [
            JudgeChoice(model=vote.voter, family=vote.family, choice=vote.choice, own_family=vote.own_family)
            for vote in judged
        ]
        return VoteAnswer(
            id=stored.id, task=stored.task, choice=given.choice, left=stored.left, right=stored.right, judges=judges
        )

    @api.get("/v1/arena/board", tags=["arena"], summary="The ratings of a task's models")
    async def board(
        http: HttpRequest, task: Annotated[str, Query(max_length=200, examples=["vqa"])], voters: Voters = "all"
    ) -> ArenaBoard:
        votes = opened(http)
        if task not in TASKS:
            raise _no_task(task)
        return await votes.call(lambda file: file.board(task, voters))


def opened(http: HttpRequest) -> VoteStore:
    """Return the arena's votes. Raises NotFound where it is closed."""
    return set_up(services(http).votes, OFF, "arena_off")


def limit_votes(limiter: Buckets, http: HttpRequest) -> None:
    """Raise TooMany where the key, or the address where there are no keys, has no votes left for now."""
    address = http.client.host if http.client is not None else ""
    name = getattr(http.state, "key", None) or f"address {hash(address) % ADDRESSES}"
    if wait_s := limiter.take(name, VOTES_A_MINUTE):
        raise TooMany(
            f"At most {VOTES_A_MINUTE} votes a minute; Retry-After says when to try again.", retry_after_s=wait_s
        )


def _duel_route(task: str) -> Callable[..., Awaitable[Duel]]:
    async def run(
        request: HttpRequest,
        judge: Annotated[str | None, Query(max_length=200, description="A model that votes, too.")] = None,
    ) -> Duel:
        return await run_duel(task, judge, request)

    return run


async def run_duel(task: str, judge_name: str | None, http: HttpRequest) -> Duel:
    """Draw two models, ask both and store the duel. Raises BadRequest, NotFound, TooLarge or Unavailable.

    The models' replies are counted in no metric, since whoever reads those would learn the names.
    """
    store, shared = opened(http), services(http)
    router = shared.router
    request = await read_task_request(http, TASKS[task].request)
    check_fields(request)
    judge = None if judge_name is None else find_judge(router, task, judge_name, request)
    pair = await draw_pair(router, task, request)
    plan = router.plan(task, request, routes=pair, arrived=http.state.arrived)

    async def answered() -> Duel:
        async with shared.media.with_pixels(request, plan.deadline):
            answers = await answer_duel(router, plan, shared.pace)
            duel = f"duel-{secrets.token_hex(16)}"
            verdict = None if judge is None else await judge_duel(judge, plan, answers)
        votes = []
        if judge is not None and verdict is not None:
            own = sum(related(judge.model, route.model) for route in pair)
            votes = [
                Vote(
                    id=f"{duel}:{judge.model.name}", task=task, left=answers.seats[0], right=answers.seats[1],
                    choice=verdict, voter=judge.model.name, judge=True, family=family_name(judge.model), own_family=own,
                    at=time.time(),
                )
            ]  # fmt: skip
        await store.call(lambda file: file.add_duel(duel, task, *answers.seats, votes))
        size = ImageSize(width=request.image.width, height=request.image.height)
        left, right = (HiddenAnswer(result=result) for result in answers.results)
        return Duel(id=duel, task=task, image=size, left=left, right=right)

    try:
        return await cancel_on_disconnect(http.receive, answered())
    except IncompleteDuel as error:
        if error.missing:
            await store.call(functools.partial(_count_missing, task, tuple(error.missing)))
        raise


def _count_missing(task: str, models: tuple[str, ...], file: VoteFile) -> None:
    file.add_unanswered(task, models)


def _no_task(task: str) -> NotFound:
    known = ", ".join(TASKS)
    return NotFound(f"There is no task {task[:200]!r}. Tasks: {known}.", param="task", code="task_not_found")
