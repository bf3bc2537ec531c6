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
    messages = {route.model.name: f"{route.model.name} has too many requests waiting." for route in routes}
    if task in TASKS:
        with metrics.fan_out(task) as meter:
            for name, message in messages.items():
                error = ReplyError(code=str(Overloaded.code), message=message)
                meter.event(Reply(model=name, status="error", error=error))
    else:
        for name in messages:
            metrics.reply(name, task, "error", 0.0, code=Overloaded.code)
    raise Overloaded(next(iter(messages.values())))
