"""Our routes: page, health, catalogue, tasks, chat completions. Knows no Ray and no engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from starlette.middleware.cors import CORSMiddleware

from serve import catalog
from serve.api import chat_completions, error_responses, openapi_schema, pages, task_calls
from serve.api.authentication import Access, Authentication
from serve.api.forms import phrases
from serve.api.head import Head
from serve.api.limits import Limits
from serve.api.metrics import Metrics
from serve.api.model_list import ModelEntry, ModelList, model_list
from serve.api.pictures import Pictures
from serve.api.rate_limiter import RateLimiter
from serve.api.request_limits import RequestLimits
from serve.engines.base import State
from serve.errors import BadRequest, NotFound
from serve.media.budget import Budget
from serve.media.fetch.fetcher import Fetcher
from serve.models.base import Model
from serve.router import Router
from serve.tasks import TASKS

LIMITS = Limits()
OPEN = Access()


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Detail(BaseModel):
    """What a model that is not ready is doing, or why it failed, and for how many seconds."""

    step: str
    since_s: float


class Readiness(BaseModel):
    """ready: a model can answer or sleeps until it is asked, and the others are on their way; degraded: some failed.
    503 until one can answer or sleeps."""

    status: Literal["starting", "ready", "degraded"]
    models: dict[str, State]
    details: dict[str, Detail] = Field(
        description="Models that are not ready: what they are doing, or why they failed."
    )

    def able(self) -> bool:
        """Whether to send requests here: a model can answer, or sleeps, which a request ends."""
        return not {"ready", "asleep"}.isdisjoint(self.models.values())


def create_app(
    router: Router,
    *,
    limits: Limits = LIMITS,
    access: Access = OPEN,
    cors: Sequence[str] = (),
    fetcher: Fetcher | None = None,
    metrics: Metrics | None = None,
    rate_limiter: RateLimiter | None = None,
    budget: Budget | None = None,
) -> FastAPI:
    """Create the HTTP app over one router.

    cors: origins whose pages may call it from a browser, beside its own. metrics, rate_limiter, budget: those of the
    app that it replaces, in which it counts on; else it has its own, as no metric is in a global registry.
    """
    app = FastAPI(
        title="Diptych", version=openapi_schema.VERSION, description=openapi_schema.ABOUT, docs_url=None, redoc_url=None
    )
    budget = budget or Budget.of_this_process()
    metrics = metrics or Metrics()
    metrics.watch(budget)
    pictures = Pictures(fetcher or Fetcher(), budget)
    # the last middleware added is the outermost
    app.add_middleware(Authentication, access=access, cors=cors, rate_limiter=rate_limiter)
    if cors:
        _add_cors(app, cors)
    app.add_middleware(Head)
    app.add_middleware(RequestLimits, metrics=metrics, limits=limits, budget=budget)
    error_responses.install(app)
    _add_chat(app, router, metrics, pictures)  # routes are tried in this order: the busiest first
    _add_tasks(app, router, metrics, pictures)
    _add_catalogue(app, router)
    _add_service(app, router, metrics)
    pages.install(app)
    bodies: list[type[BaseModel]] = [chat_completions.ChatCompletionRequest, *(task.request for task in TASKS.values())]
    openapi_schema.install(app, bodies, None if access.keys is None else access.open_paths())
    return app


def _add_cors(app: FastAPI, cors: Sequence[str]) -> None:
    """Answer browsers' preflight requests, which have no key, before authentication. Cookies mean nothing here."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _add_service(app: FastAPI, router: Router, metrics: Metrics) -> None:
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
        return Response(metrics.text(await router.statuses()), media_type=CONTENT_TYPE_LATEST)


def _add_catalogue(app: FastAPI, router: Router) -> None:
    def served() -> dict[str, Model]:
        return {name: route.model for name, route in router.routes.items()}

    async def listed() -> ModelList:
        states = {status.model: status.state for status in await router.statuses()}
        return model_list(served(), states)

    @app.get("/v1/models", tags=["models"], summary="What can be named in `model`")
    async def models() -> ModelList:
        return await listed()

    @app.get("/v1/models/{name:path}", tags=["models"], summary="One of them")
    async def model(name: str) -> ModelEntry:
        for entry in (await listed()).data:
            if entry.id == name:
                return entry
        raise NotFound(f"The model {name[:200]!r} is not served here.", param="model", code="model_not_found")

    @app.get("/v1/catalog", tags=["models"], summary="The cards of all known models, served or not")
    async def cards() -> catalog.Catalogue:
        return catalog.catalogue(served())

    @app.get("/v1/compare", tags=["models"], summary="Some models' cards as a table, row by row")
    async def compare(
        models: Annotated[str, Query(description="Names, separated by commas.", examples=["toy-llava,toy-paligemma"])],
    ) -> catalog.Comparison:
        names = phrases(models)
        if not names:
            raise BadRequest("models must name at least one model.", param="models")
        return catalog.compare(names, served())


def _add_tasks(app: FastAPI, router: Router, metrics: Metrics, pictures: Pictures) -> None:
    for name, task in TASKS.items():
        app.add_api_route(
            f"/v1/tasks/{name}",
            _task_route(router, metrics, pictures, name),
            methods=["POST"],
            tags=["tasks"],
            operation_id=f"task_{name}",
            summary=f"{task.title}: ask every model, side by side",
            responses={200: openapi_schema.events(task_calls.documented(name))},
            openapi_extra=openapi_schema.task_body(task.request),
        )

    @app.post("/v1/tasks/{task}", include_in_schema=False)
    async def unknown(task: str) -> JSONResponse:
        known = ", ".join(TASKS)
        raise NotFound(f"There is no task {task[:200]!r}. Tasks: {known}.", param="task", code="task_not_found")


def _task_route(
    router: Router, metrics: Metrics, pictures: Pictures, name: str
) -> Callable[[Request], Awaitable[Response]]:
    async def run(request: Request) -> Response:
        return await task_calls.answer(router, metrics, pictures, name, request)

    return run


def _add_chat(app: FastAPI, router: Router, metrics: Metrics, pictures: Pictures) -> None:
    @app.post(
        "/v1/chat/completions",
        tags=["chat"],
        operation_id="chat_completions",
        summary="OpenAI's chat completions: one model, or a task that many do",
        responses={200: openapi_schema.events(chat_completions.ChatCompletion)},
        openapi_extra=openapi_schema.json_body(chat_completions.ChatCompletionRequest),
    )
    async def chat(request: Request) -> Response:
        return await chat_completions.answer(router, metrics, pictures, request)


async def readiness(router: Router) -> Readiness:
    """Return the models' states, together and each by itself."""
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
