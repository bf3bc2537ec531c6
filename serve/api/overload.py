"""Refuses requests that no model has room for, before their image is fetched and decoded.

Decoding took four fifths of a refused request's time: with ten times the load that a model can take, the gateway did
little else.
"""

from collections.abc import Sequence

from serve.api.metrics import Metrics
from serve.errors import Overloaded
from serve.router.route import Route
from serve.tasks import TASKS
from serve.tasks.base import Reply, ReplyError


def refuse_overload(routes: Sequence[Route], task: str, metrics: Metrics) -> None:
    """Raise Overloaded where every route is full, and count it in the metrics as each model's reply."""
    if not all(route.full for route in routes):
        return
    errors = {route.model.name: Overloaded.of_model(route.model.name) for route in routes}
    if task in TASKS:
        with metrics.fan_out(task) as meter:
            for name, error in errors.items():
                refusal = ReplyError(code=str(error.code), message=error.message)
                meter.event(Reply(model=name, status="error", error=refusal))
    else:
        for name in errors:
            metrics.reply(name, task, "error", 0.0, code=Overloaded.code)
    raise errors[routes[0].model.name]
