"""Checks a request and plans it: which models to call, and everything that can be refused before a model is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.engines.base import ReasoningOptions
from serve.errors import BadRequest, NotFound
from serve.limits import LIMITS
from serve.models.base import Model
from serve.models.reasoning import reasoning_refusal
from serve.router.deadline import Deadline
from serve.router.judge import Judge
from serve.router.route import Route
from serve.tasks import TASKS
from serve.tasks.base import Request

CHAT = "chat"
JUDGE = "judge"


@dataclass(frozen=True)
class Plan:
    """A checked request to several models.

    routes: the models to call, in catalogue order. judge: writes the merged reply; None where a rule merges. quorum:
    number of good replies after which the others are cut. weights: of each model's reply in the merge.
    """

    task: str
    request: Request
    routes: Sequence[Route]
    judge: Judge | None
    quorum: int
    weights: Mapping[str, float]
    deadline: Deadline


def find_route(routes: Mapping[str, Route], name: str, param: str = "model") -> Route:
    """Return the route of one served model. Raises NotFound naming the served ones."""
    if name not in routes:
        raise NotFound(
            f"The model {name[:200]!r} is not served here. Served: {', '.join(routes)}.",
            param=param,
            code="model_not_found",
        )
    return routes[name]


def able_routes(
    routes: Mapping[str, Route], task: str, names: Sequence[str] | None, *, video: bool = False
) -> list[Route]:
    """Return the routes of models that can do the task with an image, or with a video, in catalogue order.

    names: the models that the client wants; None for all. Raises NotFound or BadRequest naming `models`.
    """
    wanted = list(routes.values()) if names is None else [find_route(routes, name, "models") for name in names]
    unable = [route.model.name for route in wanted if task not in route.model.skills]
    if names is not None and unable:
        raise BadRequest(f"{', '.join(unable)} cannot do {task}.", param="models", code="task_not_supported")
    blind = [route.model.name for route in wanted if not takes_media(route.model, video)]
    if names is not None and blind:
        raise unsupported_media(blind, video, "models")
    chosen = {route.model.name for route in wanted} - {*unable, *blind}
    if not chosen:
        about = " about a video" if video else " about an image" if len(unable) < len(wanted) else ""
        raise NotFound(f"No served model can do {task}{about}.", param="models", code="no_able_model")
    return [route for name, route in routes.items() if name in chosen]


def check_limits(request: Request, routes: Sequence[Route]) -> None:
    """Raise BadRequest naming the field of a request that exceeds a limit of its key (serve/limits.py).

    All requests of tasks come here. A chat's client reads the chat's name of the field in its place.
    """
    limits = LIMITS.get()
    if limits.max_models is not None and len(routes) > limits.max_models:
        raise BadRequest(
            f"The request asks {len(routes)} models; it may ask at most {limits.max_models}: name fewer.",
            param="models",
            code="too_many_models",
        )


def suited(routes: Sequence[Route], task: str, request: Request) -> Sequence[Route]:
    """Return the routes of models that a request which names none is for; all of them where it is for none."""
    return [route for route in routes if route.model.skills[task].suits(request)] or routes


def choose_judge(routes: Mapping[str, Route], task: str, request: Request) -> Judge | None:
    """Return the judge, or None where the client wants none. Raises BadRequest or NotFound naming `judge` or `merge`.

    Its candidates are the named model, or else all that can chat, in catalogue order with toys last.
    """
    judging, named = TASKS[task].judging, getattr(request, "judge", None)
    if judging is None or request.merge != JUDGE:
        if named is not None:
            raise BadRequest(f'A judge is asked by "merge": "{JUDGE}".', param="judge")
        return None
    video = request.video is not None
    if named is not None:
        model = find_route(routes, named, "judge").model
        if CHAT not in model.skills:
            raise BadRequest(f"{named} cannot chat, so it cannot judge.", param="judge", code="task_not_supported")
        if not takes_media(model, video):
            raise unsupported_media([named], video, "judge")
    able = [
        route
        for name, route in routes.items()
        if CHAT in route.model.skills and takes_media(route.model, video) and named in (None, name)
    ]
    if not able:
        about = " about a video" if video else ""
        raise BadRequest(f"No served model can chat{about}, so none can judge.", param="merge")
    return Judge(judging, sorted(able, key=lambda route: route.model.card.toy))


def check_reasoning(models: Sequence[Model], options: ReasoningOptions) -> None:
    """Raise BadRequest naming the parameter where none of the models can follow it: of several, some answer as ever."""
    refused = [reasoning_refusal(model.reasoning, options) for model in models]
    if refused[0] is not None and None not in refused:
        param, why = refused[0]
        of_many = "" if len(models) == 1 else "No model that is asked can follow it: "
        raise BadRequest(f"{of_many}{models[0].name} {why}.", param=param, code="unsupported_parameter")


def takes_media(model: Model, video: bool) -> bool:
    """Return whether a model takes_media videos (video=True) or images."""
    return model.videos if video else model.images


def unsupported_media(names: Sequence[str], video: bool, param: str) -> BadRequest:
    """Return the error for models that do not take videos (video=True) or images."""
    verb = "takes" if len(names) == 1 else "take"
    message = f"{', '.join(names)} {verb} {'images, not video' if video else 'video, not images'}."
    return BadRequest(message, param=param, code=f"{'video' if video else 'image'}_not_supported")
