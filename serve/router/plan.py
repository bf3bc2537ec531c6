"""What one request asks of which models, checked: everything that a client should hear before a model is called."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serve.errors import BadRequest, NotFound
from serve.models.base import Model
from serve.router.deadline import Deadline
from serve.router.judge import Judge
from serve.router.route import Route
from serve.tasks import TASKS
from serve.tasks.base import Request

CHAT = "chat"
JUDGE = "judge"


@dataclass(frozen=True)
class Plan:
    """One request to several models.

    routes: whom to ask, in catalogue order. judge: who writes the merged reply, where a model does. quorum: how many
    replies that are ok are enough. weights: how much each model's reply counts.
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
    routes: Mapping[str, Route], task: str, names: Sequence[str] | None, *, film: bool = False
) -> list[Route]:
    """Return the routes that can do the task about an image, or about a film, in catalogue order.

    names: whom the client wants; all when None. Raises NotFound or BadRequest naming `models`.
    """
    wanted = list(routes.values()) if names is None else [find_route(routes, name, "models") for name in names]
    unable = [route.model.name for route in wanted if task not in route.model.skills]
    if names is not None and unable:
        raise BadRequest(f"{', '.join(unable)} cannot do {task}.", param="models", code="task_not_supported")
    blind = [route.model.name for route in wanted if not takes(route.model, film)]
    if names is not None and blind:
        raise wrong_medium(blind, film, "models")
    chosen = {route.model.name for route in wanted} - {*unable, *blind}
    if not chosen:
        about = " about a video" if film else " about an image" if len(unable) < len(wanted) else ""
        raise NotFound(f"No served model can do {task}{about}.", param="models", code="no_able_model")
    return [route for name, route in routes.items() if name in chosen]


def choose_judge(routes: Mapping[str, Route], task: str, request: Request) -> Judge | None:
    """Return who will judge, where the client wants that. Raises BadRequest or NotFound naming `judge` or `merge`.

    It is the named model; else the first in catalogue order that can chat, is no toy and is ready by then, else the
    first such toy.
    """
    judging, named = TASKS[task].judging, getattr(request, "judge", None)
    if judging is None or request.merge != JUDGE:
        if named is not None:
            raise BadRequest(f'A judge is asked by "merge": "{JUDGE}".', param="judge")
        return None
    film = request.video is not None
    if named is not None:
        model = find_route(routes, named, "judge").model
        if CHAT not in model.skills:
            raise BadRequest(f"{named} cannot chat, so it cannot judge.", param="judge", code="task_not_supported")
        if not takes(model, film):
            raise wrong_medium([named], film, "judge")
    able = [
        route
        for name, route in routes.items()
        if CHAT in route.model.skills and takes(route.model, film) and named in (None, name)
    ]
    if not able:
        about = " about a video" if film else ""
        raise BadRequest(f"No served model can chat{about}, so none can judge.", param="merge")
    return Judge(judging, sorted(able, key=lambda route: route.model.card.toy))


def takes(model: Model, film: bool) -> bool:
    """Return whether a model takes films, or images."""
    return model.videos if film else model.images


def wrong_medium(names: Sequence[str], film: bool, param: str) -> BadRequest:
    """Return the refusal of a film, or of an image, for models that do not take it."""
    verb = "takes" if len(names) == 1 else "take"
    message = f"{', '.join(names)} {verb} {'images, not video' if film else 'video, not images'}."
    return BadRequest(message, param=param, code=f"{'video' if film else 'image'}_not_supported")
