"""An ML backend for Label Studio: POST /label-studio/predict and /label-studio/setup, GET /label-studio/health.

A project's labelling config says what is asked: the labels of RectangleLabels are detected, those of BrushLabels and
PolygonLabels segmented, and a TextArea is filled by the task that it is named after.
"""

import asyncio
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field, ValidationError
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from serve.api import openapi_schema
from serve.api.body import check_values, parse_body, parsed_or_none
from serve.api.error_responses import validation_error
from serve.api.events import gather_answer, refuse_overload
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.responses import PiecewiseJson, cancel_on_disconnect
from serve.api.services import services
from serve.errors import BadRequest, ServeError
from serve.limits import LIMITS
from serve.media.image import Image, image_from_url
from serve.router import Router
from serve.router.router import Plan
from serve.tasks import TASKS
from serve.tasks.labels.label_studio import Control, parse_labelling_config, regions
from serve.tasks.request import Request

FOLDER = "/label-studio/"
MAX_TASKS = 100
"""Label Studio's own batch."""
AT_ONCE = 4
"""Tasks of one request that are answered at once."""
DEADLINE_S = 90.0
"""Label Studio waits 100 s."""
MAX_CONFIG = 100_000


class LabellingTask(BaseModel):
    """A task of Label Studio, with all that it has beside its data left out."""

    data: dict[str, Any]


class PredictRequest(BaseModel):
    """Tasks to predict. Other fields that Label Studio sends are not looked at: they differ between its versions."""

    tasks: list[LabellingTask] = Field(min_length=1, max_length=MAX_TASKS)
    label_config: str = Field(max_length=MAX_CONFIG, description="The project's labelling config, XML.")


class SetupRequest(BaseModel):
    """A project that is connected."""

    label_config: str = Field(default="", max_length=MAX_CONFIG, alias="schema", description="The labelling config.")


class Prediction(BaseModel):
    """A task's regions. score: the models' agreement, the least of all controls'.

    error: why there are none, of one task among others; score is 0 then, so that it is the first to be reviewed.
    """

    model_version: str
    score: float
    result: list[dict[str, Any]]
    error: dict[str, Any] | None = Field(default=None, exclude_if=lambda error: error is None)


class Predictions(BaseModel):
    results: list[Prediction]


class Setup(BaseModel):
    model_version: str


class BackendHealth(BaseModel):
    status: Literal["UP"] = "UP"
    model_class: Literal["Diptych"] = "Diptych"


@dataclass(frozen=True)
class PictureQuestions:
    """A task's picture and what to ask about it. param: its place in the request."""

    param: str
    image: Image
    requests: Sequence[tuple[Control, Request]]


def add_label_studio(api: APIRouter) -> None:
    """Add the routes of the ML backend."""

    @api.get(f"{FOLDER}health", tags=["label-studio"], summary="Label Studio's ML backend is alive")
    async def backend_health() -> BackendHealth:
        return BackendHealth()

    @api.post(
        f"{FOLDER}setup",
        tags=["label-studio"],
        summary="Whether a project's labelling config can be filled",
        openapi_extra=openapi_schema.json_body(SetupRequest),
    )
    async def setup(http: HttpRequest) -> Setup:
        config = (await parse_body(http, functools.partial(_parse, SetupRequest))).label_config
        if "toName" in config:  # a new project has none yet
            _controls(config, "schema")
        return Setup(model_version=_version(services(http).router))

    @api.post(
        f"{FOLDER}predict",
        tags=["label-studio"],
        summary="Predictions for Label Studio's tasks, merged from every model's answers",
        openapi_extra=openapi_schema.json_body(PredictRequest),
        responses={200: {"model": Predictions}},
    )
    async def predict(http: HttpRequest) -> Response:
        pictures, shared = await parse_body(http, _read), services(http)
        plans = [_plans(shared.router, shared.metrics, questions, http.state.arrived) for questions in pictures]
        answers = _answer_all(shared.router, shared.metrics, shared.media, pictures, plans)
        predictions = await cancel_on_disconnect(http.receive, answers)
        return PiecewiseJson([Predictions(results=predictions).model_dump_json().encode()])


def _parse(kind: Any, body: bytes) -> Any:
    try:
        return kind.model_validate_json(check_values(body))
    except ValidationError as error:
        raise validation_error(error, parsed_or_none(body)) from None


def _read(body: bytes) -> list[PictureQuestions]:
    """Parse a request to predict, with the pictures that are data. Raises BadRequest or TooLarge naming the field."""
    request: PredictRequest = _parse(PredictRequest, body)
    controls = _controls(request.label_config, "label_config")
    fields = {control.picture for control in controls}
    if len(fields) > 1:
        raise BadRequest("The labelling config has controls for several pictures.", param="label_config")
    (field,) = fields
    return [_ask(f"tasks[{at}].data", task.data, field, controls) for at, task in enumerate(request.tasks)]


def _ask(param: str, data: dict[str, Any], field: str, controls: Sequence[Control]) -> PictureQuestions:
    address = data.get(field)
    if not isinstance(address, str):
        raise BadRequest(f"{field} must be the picture's address.", param=f"{param}.{field}", code="invalid_type")
    if address.startswith("/"):
        raise BadRequest(
            "The picture must be a data URL or an https URL of a public host: what Label Studio keeps itself is not "
            "fetched from it.",
            param=f"{param}.{field}",
        )
    image = image_from_url(address, f"{param}.{field}")
    requests = []
    for control in controls:
        seconds = min(DEADLINE_S, LIMITS.get().max_deadline_s)  # the client asked for none
        fields: dict[str, Any] = {"image": image, "deadline_s": seconds, "priority": "batch"}
        if (text_field := TASKS[control.task].text_field) is not None:
            fields[text_field.name] = list(control.labels) or data.get(text_field.name)
        try:
            requests.append((control, TASKS[control.task].request.model_validate(fields)))
        except ValidationError as error:
            problem = validation_error(error, fields)
            name = "" if text_field is None else text_field.name
            of_config = bool(control.labels) and (problem.param or "").startswith(name)
            place = "label_config" if of_config else f"{param}.{problem.param}"
            raise BadRequest(problem.message, param=place, code=problem.code) from None
        except BadRequest as error:
            raise BadRequest(error.message, param=f"{param}.{error.param}", code=error.code) from None
    return PictureQuestions(param, image, requests)


def _plans(router: Router, metrics: Metrics, questions: PictureQuestions, arrived: float) -> list[Plan]:
    plans = []
    for control, request in questions.requests:
        try:
            plan = router.plan(control.task, request, arrived=arrived)
        except BadRequest as error:
            if error.code == "too_many_labels":  # those of the data: the config's are counted where it is read
                error.param = f"{questions.param}.{error.param}"
            raise
        refuse_overload(plan.routes, control.task, metrics)
        plans.append(plan)
    return plans


async def _answer_all(
    router: Router,
    metrics: Metrics,
    media: MediaLoader,
    pictures: Sequence[PictureQuestions],
    plans: Sequence[Sequence[Plan]],
) -> list[Prediction]:
    """Return each task's prediction, in order. Raises ServeError where the only task fails."""
    room = asyncio.Semaphore(AT_ONCE)

    async def answer(questions: PictureQuestions, its_plans: Sequence[Plan]) -> Prediction:
        async with room:
            try:
                return await _answer(router, metrics, media, questions, its_plans)
            except ServeError as error:
                if len(pictures) == 1:
                    raise
                return Prediction(model_version=_version(router), score=0.0, result=[], error=error.body()["error"])

    jobs = [asyncio.ensure_future(answer(*pair)) for pair in zip(pictures, plans, strict=True)]
    try:
        return await asyncio.gather(*jobs)
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)


async def _answer(
    router: Router, metrics: Metrics, media: MediaLoader, questions: PictureQuestions, plans: Sequence[Plan]
) -> Prediction:
    result: list[dict[str, Any]] = []
    score = 1.0
    async with media.decoded_image(questions.image, plans[0].deadline):
        size = (questions.image.width, questions.image.height)
        for (control, _), plan in zip(questions.requests, plans, strict=True):
            merged = (await gather_answer(router, plan, metrics)).merged
            score = min(score, merged.agreement)
            if merged.result is not None:
                body = merged.result.model_dump(mode="json")
                result += await asyncio.to_thread(regions, body, control, size)  # large masks take their time
    return Prediction(model_version=_version(router), score=score, result=result)


def _controls(config: str, param: str) -> list[Control]:
    try:
        return parse_labelling_config(config, LIMITS.get().max_labels)
    except ValueError as error:
        raise BadRequest(str(error), param=param) from None


def _version(router: Router) -> str:
    """Return the models' names: predictions of others are another version, which Label Studio asks for again."""
    return ", ".join(router.routes)[:200]
