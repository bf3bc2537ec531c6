"""Creates the FastAPI app: page, health, catalogue, tasks, chat completions. Imports no Ray and no engine."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.middleware.cors import CORSMiddleware

from serve.api import (
    arena_endpoints,
    chat_completions,
    error_responses,
    evaluation_endpoints,
    label_studio_endpoints,
    openapi_schema,
    pages,
    result_endpoints,
    task_endpoint,
)
from serve.api.authentication import Access, Authentication
from serve.api.evaluation_runs import RunFolder
from serve.api.head_requests import HeadRequests
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.model_list import ModelEntry, ModelList, model_list
from serve.api.rate_limiter import RateLimiter
from serve.api.request_limits import RequestLimits
from serve.api.shared_results import ResultFile
from serve.api.task_body import split_phrases
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

OPEN = Access()


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Detail(BaseModel):
    """The state of a model that is not ready. step: its progress, or why it failed. since_s: seconds in this state."""

    step: str
    since_s: float


class Readiness(BaseModel):
    """The state of the server.

    ready: no model has failed, and one can answer or sleeps until a request comes. degraded: some have failed.
    starting: none can answer yet. The status is 503 until a model can answer or sleeps.
    """

    status: Literal["starting", "ready", "degraded"]
    models: dict[str, State]
    details: dict[str, Detail] = Field(
        description="Models that are not ready: what they are doing, or why they failed."
    )

    def able(self) -> bool:
        """Return whether a model can answer, or sleeps, so that a request would wake it."""
        return not {"ready", "asleep"}.isdisjoint(self.models.values())


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
) -> FastAPI:
    """Create the HTTP app for a router.

    cors: other origins whose pages may call it from a browser. metrics, rate_limiter, budget: those of the app that it
    replaces, to keep their counts; new ones by default. votes: of the arena; None where it is closed.
    evaluations: of the page /evaluations; results: those that people share; None where the operator set none.
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
    metrics.watch(budget)
    media = MediaLoader(fetcher or Fetcher(), budget)
    # the last middleware added is the outermost
    app.add_middleware(Authentication, access=access, limits=limits, cors=cors, rate_limiter=rate_limiter)
    if cors:
        _add_cors(app, cors)
    app.add_middleware(HeadRequests)
    app.add_middleware(RequestLimits, metrics=metrics, limits=limits, budget=budget)
    error_responses.add_handlers(app)
    _add_chat(app, router, metrics, media)  # routes are tried in this order: the busiest first
    _add_tasks(app, router, metrics, media)
    arena_endpoints.add_arena(app, router, media, votes)
    label_studio_endpoints.add_label_studio(app, router, metrics, media)
    _add_catalogue(app, router)
    _add_service(app, router, metrics)
    evaluation_endpoints.add_evaluations(app, evaluations)
    result_endpoints.add_results(app, media, results)
    pages.add_pages(app, arena=votes is not None, evaluations=evaluations is not None, results=results is not None)
    bodies: list[type[BaseModel]] = [
        chat_completions.ChatCompletionRequest,
        arena_endpoints.VoteRequest,
        label_studio_endpoints.PredictRequest,
        label_studio_endpoints.SetupRequest,
        result_endpoints.ShareRequest,
        *(task.request for task in TASKS.values()),
    ]
    openapi_schema.serve_schema(app, bodies, None if access.keys is None else access.open_paths())
    return app


def _add_cors(app: FastAPI, cors: Sequence[str]) -> None:
    """Answer browsers' preflight requests before authentication, since they have no key. No cookies are used."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _add_service(app: FastAPI, router: Router, metrics: Metrics) -> None:
    scraping = asyncio.Lock()  # each sets the models' gauges anew; the text then takes a thread 20 ms

    @app.get("/health", tags=["service"], summary="The process is alive")
    async def health() -> Health:
        return Health()

    @app.get("/ready", tags=["service"], summary="Which models can answer", responses={503: {"model": Readiness}})
    async def ready(response: Response) -> Readiness:
        state = await readiness(router)
        response.status_code = 200 if state.able() else 503
        return state

    @app.get("/metrics", tags=["service"], summary="Counters and times for Prometheus", response_class=Response)
    async def read_metrics() -> Response:
        async with scraping:
            metrics.update(await router.statuses())
            text = await asyncio.to_thread(metrics.text)
        return Response(text, media_type=CONTENT_TYPE_LATEST)


def _add_catalogue(app: FastAPI, router: Router) -> None:
    def served() -> dict[str, Model]:
        return {name: route.model for name, route in router.routes.items()}

    async def reports() -> dict[str, CheckReport]:
        return {status.model: status.report for status in await router.statuses() if status.report is not None}

    async def listed() -> ModelList:
        return model_list(served(), {status.model: status for status in await router.statuses()})

    @app.get("/v1/models", tags=["models"], summary="Names for the field `model`: models and tasks")
    async def models() -> ModelList:
        return await listed()

    @app.get("/v1/models/{name:path}", tags=["models"], summary="A model or task by its name")
    async def model(name: str) -> ModelEntry:
        for entry in (await listed()).data:
            if entry.id == name:
                return entry
        raise NotFound(f"The model {name[:200]!r} is not served here.", param="model", code="model_not_found")

    @app.get("/v1/catalog", tags=["models"], summary="The cards of all known models, served or not")
    async def cards() -> catalog.Catalogue:
        return catalog.catalogue(served(), await reports())

    @app.get("/v1/compare", tags=["models"], summary="Some models' cards as a table, row by row")
    async def compare(
        models: Annotated[
            list[str],
            Query(description="Names, separated by commas or each by itself.", examples=[["toy-llava,toy-paligemma"]]),
        ],
    ) -> catalog.Comparison:
        names = split_phrases(",".join(models))
        if not names:
            raise BadRequest("models must name at least one model.", param="models")
        return catalog.compare_models(names, served(), await reports())


def _add_tasks(app: FastAPI, router: Router, metrics: Metrics, media: MediaLoader) -> None:
    for name, task in TASKS.items():
        app.add_api_route(
            f"/v1/tasks/{name}",
            _task_route(router, metrics, media, name),
            methods=["POST"],
            tags=["tasks"],
            operation_id=f"task_{name}",
            summary=f"{task.title}: ask every model, side by side",
            responses={200: openapi_schema.json_or_events(task_endpoint.answer_schema(name))},
            openapi_extra=openapi_schema.task_body(task.request),
        )

    @app.post("/v1/tasks/{task}", include_in_schema=False)
    async def unknown(task: str) -> JSONResponse:
        known = ", ".join(TASKS)
        raise NotFound(f"There is no task {task[:200]!r}. Tasks: {known}.", param="task", code="task_not_found")


def _task_route(
    router: Router, metrics: Metrics, media: MediaLoader, name: str
) -> Callable[[Request], Awaitable[Response]]:
    async def run(request: Request) -> Response:
        return await task_endpoint.run_task(router, metrics, media, name, request)

    return run


def _add_chat(app: FastAPI, router: Router, metrics: Metrics, media: MediaLoader) -> None:
    @app.post(
        "/v1/chat/completions",
        tags=["chat"],
        operation_id="chat_completions",
        summary="OpenAI's chat completions: one model, or a task that many do",
        responses={200: openapi_schema.json_or_events(chat_completions.ChatCompletion)},
        openapi_extra=openapi_schema.json_body(chat_completions.ChatCompletionRequest),
    )
    async def chat(request: Request) -> Response:
        return await chat_completions.complete_chat(router, metrics, media, request)


async def readiness(router: Router) -> Readiness:
    """Return the states of all models and of the server."""
    statuses = await router.statuses()
    states: dict[str, State] = {status.model: status.state for status in statuses}
    present: set[State] = set(states.values())
    overall: Literal["starting", "ready", "degraded"] = "degraded" if "failed" in present else "ready"
    if present.isdisjoint({"ready", "asleep"}) and ("starting" in present or not present):
        overall = "starting"
    return Readiness(
        status=overall,
        models=states,
        details={
            status.model: Detail(step=status.step, since_s=round(status.since_s, 1))
            for status in statuses
            if status.state != "ready"
        },
    )
