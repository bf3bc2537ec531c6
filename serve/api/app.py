"""Creates the FastAPI app: page, health, catalogue, tasks, chat completions. Imports no Ray and no engine."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.api import (
    adapter_endpoints,
    arena_endpoints,
    chat_completions,
    error_responses,
    evaluation_endpoints,
    label_studio_endpoints,
    model_responses,
    openapi_schema,
    pages,
    result_endpoints,
    task_endpoint,
)
from serve.api.adapter_changes import AdapterChanges, LoadRequest, UnloadRequest
from serve.api.authentication import Access, Authentication
from serve.api.batches import endpoints as batch_endpoints
from serve.api.batches.runner import BatchRunner
from serve.api.evaluation_runs import RunFolder
from serve.api.evaluation_starts import StartRequest
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.model_list import ModelEntry, ModelList, model_list
from serve.api.rate_limiter import RateLimiter
from serve.api.request_limits import RequestLimits
from serve.api.request_log import RequestLog
from serve.api.services import Services, services
from serve.api.shared_results import ResultFile
from serve.arena.store import VoteStore
from serve.engines.base import State
from serve.errors import BadRequest, NotFound
from serve.limits import DEFAULT_LIMITS, Limits
from serve.media.budget import Budget
from serve.media.fetch.fetcher import Fetcher
from serve.models import catalog
from serve.models.base import Model
from serve.models.check_report import CheckReport
from serve.router import Router
from serve.tasks import TASKS
from serve.tasks.base import split_phrases

OPEN = Access()
LOADED: set[State] = {"ready", "asleep"}


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Detail(BaseModel):
    """The state of a model that is not ready. step: its progress, or why it failed. since_s: seconds in this state."""

    step: str
    since_s: float


class Readiness(BaseModel):
    """The state of the server.

    ready: no model has failed, and one can answer or sleeps until a request comes. degraded: some have failed.
    starting: none can answer yet, or a required one was never loaded. The status is 503 until a model can answer or
    sleeps, and each required one was loaded.
    """

    status: Literal["starting", "ready", "degraded"]
    models: dict[str, State]
    details: dict[str, Detail] = Field(
        description="Models that are not ready: what they are doing, or why they failed."
    )
    awaited: list[str] = Field(
        default=[], description="Required models that were not loaded yet since this process began."
    )

    def able(self) -> bool:
        """Return whether a model can answer, or sleeps, so that a request would wake it, and none is awaited."""
        return not self.awaited and not LOADED.isdisjoint(self.models.values())


def create_app(
    router: Router,
    *,
    limits: Limits = DEFAULT_LIMITS,
    access: Access = OPEN,
    cors: Sequence[str] = (),
    fetcher: Fetcher | None = None,
    metrics: Metrics | None = None,
    rate_limiter: RateLimiter | None = None,
    budget: Budget | None = None,
    votes: VoteStore | None = None,
    evaluations: RunFolder | None = None,
    results: ResultFile | None = None,
    request_log: RequestLog | None = None,
    batches: BatchRunner | None = None,
    adapters: AdapterChanges | None = None,
    awaited: set[str] | None = None,
) -> FastAPI:
    """Create the HTTP app for a router.

    cors: other origins whose pages may call it from a browser. metrics, rate_limiter, budget: those of the app that it
    replaces, to keep their counts; new ones by default. votes: of the arena; None where it is closed.
    evaluations: of the page /evaluations; results: those that people share; request_log: of POST requests; batches:
    asks this app from now on; adapters: loads LoRA adapters; None where the operator set none. awaited: required models
    that were not loaded yet, which /ready waits for; they are taken out of it.
    """
    app = FastAPI(
        title="Diptych",
        version=openapi_schema.VERSION,
        description=openapi_schema.ABOUT,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    budget = budget or Budget.of_this_process()
    metrics = metrics or Metrics()
    metrics.watch(budget, request_log=request_log)
    rate_limiter = rate_limiter or RateLimiter()
    media = MediaLoader(fetcher or Fetcher(), budget, metrics, rate_limiter)
    app.state.services = Services(
        router, metrics, media, votes, evaluations, results, batches, adapters, set() if awaited is None else awaited
    )
    # the last middleware added is the outermost
    app.add_middleware(Authentication, access=access, limits=limits, cors=cors, rate_limiter=rate_limiter)
    if cors:
        _add_cors(app, cors)
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestLimits, metrics=metrics, limits=limits, budget=budget, request_log=request_log)
    error_responses.add_handlers(app)
    app.router.routes += _routes(tuple(TASKS))
    bodies: list[type[BaseModel]] = [
        chat_completions.ChatCompletionRequest,
        model_responses.ResponseRequest,
        arena_endpoints.VoteRequest,
        label_studio_endpoints.PredictRequest,
        label_studio_endpoints.SetupRequest,
        result_endpoints.ShareRequest,
        batch_endpoints.BatchRequest,
        batch_endpoints.FileForm,
        StartRequest,
        LoadRequest,
        UnloadRequest,
        *(task.request for task in TASKS.values()),
    ]
    openapi_schema.serve_schema(app, bodies, None if access.keys is None else access.open_paths())
    if batches is not None:
        batches.app = app
    return app


@functools.cache
def _routes(tasks: tuple[str, ...]) -> list[BaseRoute]:
    """Return the routes of every app with these tasks: FastAPI takes 35 ms to make them, and apps are made anew."""
    api = APIRouter()
    _add_chat(api)  # routes are tried in this order: the busiest first
    _add_tasks(api, tasks)
    arena_endpoints.add_arena(api, tasks)
    label_studio_endpoints.add_label_studio(api)
    _add_catalogue(api)
    _add_service(api)
    evaluation_endpoints.add_evaluations(api)
    result_endpoints.add_results(api)
    batch_endpoints.add_batches(api)
    adapter_endpoints.add_adapters(api)
    pages.add_pages(api)
    return api.routes


def _add_cors(app: FastAPI, cors: Sequence[str]) -> None:
    """Answer browsers' preflight requests before authentication, since they have no key. No cookies are used."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors,
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["authorization", "content-type", "x-delete-token", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _add_service(api: APIRouter) -> None:
    @api.get("/health", tags=["service"], summary="The process is alive")
    async def health() -> Health:
        return Health()

    @api.get("/ready", tags=["service"], summary="Which models can answer", responses={503: {"model": Readiness}})
    async def ready(request: Request, response: Response) -> Readiness:
        state = await readiness(services(request).router, services(request).awaited)
        response.status_code = 200 if state.able() else 503
        return state

    @api.get("/metrics", tags=["service"], summary="Counters and times for Prometheus", response_class=Response)
    async def read_metrics(request: Request) -> Response:
        shared = services(request)
        async with shared.scraping:
            shared.metrics.update(await shared.whole_router.statuses())
            text = await asyncio.to_thread(shared.metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_catalogue(api: APIRouter) -> None:
    def served(request: Request) -> dict[str, Model]:
        return {name: route.model for name, route in services(request).router.routes.items()}

    async def reports(request: Request) -> dict[str, CheckReport]:
        statuses = await services(request).router.statuses()
        return {status.model: status.report for status in statuses if status.report is not None}

    async def listed(request: Request) -> ModelList:
        statuses = await services(request).router.statuses()
        return model_list(served(request), {status.model: status for status in statuses})

    @api.get("/v1/models", tags=["models"], summary="Names for the field `model`: models and tasks")
    async def models(request: Request) -> ModelList:
        return await listed(request)

    @api.get("/v1/models/{name:path}", tags=["models"], summary="A model or task by its name")
    async def model(request: Request, name: str) -> ModelEntry:
        for entry in (await listed(request)).data:
            if entry.id == name:
                return entry
        raise NotFound(f"The model {name[:200]!r} is not served here.", param="model", code="model_not_found")

    @api.get("/v1/catalog", tags=["models"], summary="The cards of all known models, served or not")
    async def cards(request: Request) -> catalog.Catalogue:
        return catalog.catalogue(served(request), await reports(request))

    @api.get("/v1/compare", tags=["models"], summary="Some models' cards as a table, row by row")
    async def compare(
        request: Request,
        models: Annotated[
            list[str],
            Query(description="Names, separated by commas or each by itself.", examples=[["toy-llava,toy-paligemma"]]),
        ],
    ) -> catalog.Comparison:
        names = split_phrases(",".join(models))
        if not names:
            raise BadRequest("models must name at least one model.", param="models")
        return catalog.compare_models(names, served(request), await reports(request))


def _add_tasks(api: APIRouter, tasks: Sequence[str]) -> None:
    for name in tasks:
        task = TASKS[name]
        api.add_api_route(
            f"/v1/tasks/{name}",
            _task_route(name),
            methods=["POST"],
            tags=["tasks"],
            operation_id=f"task_{name}",
            summary=f"{task.title}: ask every model, side by side",
            responses={200: openapi_schema.json_or_events(task_endpoint.answer_schema(name))},
            openapi_extra=openapi_schema.task_body(task.request),
        )

    @api.post("/v1/tasks/{task}", include_in_schema=False)
    async def unknown(task: str) -> JSONResponse:
        known = ", ".join(TASKS)
        raise NotFound(f"There is no task {task[:200]!r}. Tasks: {known}.", param="task", code="task_not_found")


def _task_route(name: str) -> Callable[[Request], Awaitable[Response]]:
    async def run(request: Request) -> Response:
        return await task_endpoint.run_task(services(request), name, request)

    return run


def _add_chat(api: APIRouter) -> None:
    @api.post(
        "/v1/chat/completions",
        tags=["chat"],
        operation_id="chat_completions",
        summary="OpenAI's chat completions: one model, or a task that many do",
        responses={200: openapi_schema.json_or_events(chat_completions.ChatCompletion)},
        openapi_extra=openapi_schema.json_body(chat_completions.ChatCompletionRequest),
    )
    async def chat(request: Request) -> Response:
        shared = services(request)
        return await chat_completions.complete_chat(shared.router, shared.metrics, shared.media, request)

    @api.post(
        "/v1/responses",
        tags=["chat"],
        operation_id="create_response",
        summary="OpenAI's responses: the same in its newer format",
        responses={200: openapi_schema.json_or_events(model_responses.Response)},
        openapi_extra=openapi_schema.json_body(model_responses.ResponseRequest),
    )
    async def respond(request: Request) -> Response:
        shared = services(request)
        return await model_responses.create_response(shared.router, shared.metrics, shared.media, request)


class HeadRequests:
    """Middleware that answers HEAD like GET, with the same status and headers but no body (RFC 9110, 9.1).

    The outer scope keeps its method, which the server, metrics and logs need.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        routed = {**scope, "method": "GET"}
        try:
            await self.app(routed, receive, send_without_body)
        finally:
            if "route" in routed:
                scope["route"] = routed["route"]


async def readiness(router: Router, awaited: set[str]) -> Readiness:
    """Return the states of all models and of the server. Those that are loaded are taken out of `awaited`."""
    statuses = await router.statuses()
    states: dict[str, State] = {status.model: status.state for status in statuses}
    present: set[State] = set(states.values())
    overall: Literal["starting", "ready", "degraded"] = "degraded" if "failed" in present else "ready"
    awaited.difference_update([name for name, state in states.items() if state in LOADED])
    if awaited or (present.isdisjoint(LOADED) and ("starting" in present or not present)):
        overall = "starting"
    return Readiness(
        status=overall,
        models=states,
        details={
            status.model: Detail(step=status.step, since_s=round(status.since_s, 1))
            for status in statuses
            if status.state != "ready"
        },
        awaited=sorted(awaited),
    )
