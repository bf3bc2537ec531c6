"""The Ray Serve application: one deployment per engine, and the gateway before them."""

import ray.serve
from fastapi import FastAPI
from ray.serve.handle import DeploymentHandle

from deployments import autoscaling
from deployments.args import Args, LoraArgs, Placed
from deployments.front import Front
from deployments.machine import stay_inside
from deployments.pool import Pool
from deployments.remote import Remote
from deployments.replica import Replica
from serve.api import create_app
from serve.fetch.fetcher import Fetcher
from serve.router import Router

GRACE_S = 8
"""Less than graceful_shutdown_timeout_s below."""


@ray.serve.ingress()
class Gateway:
    """The HTTP front. It imports neither torch nor vLLM: it starts in a second and weighs little."""

    def __init__(self, args: Args, handles: dict[str, DeploymentHandle]) -> None:
        """handles: one for each engine, by the name of its model; adapters go by their base's."""
        stay_inside()
        bases = {entry.name: entry.base for entry in args.models if isinstance(entry, LoraArgs)}
        models, engines = args.built(), args.engines()
        pools = {name: Pool(handle, engines[name]) for name, handle in handles.items()}
        router = Router([Remote(model, pools[bases.get(name, name)]) for name, model in models.items()])
        gateway, listen = args.gateway, args.gateway.listen
        self.served = create_app(
            router,
            limits=gateway.limits(),
            access=gateway.access(),
            origins=gateway.cors,
            fetcher=Fetcher(gateway.images),
        )
        self.front = (
            Front(self.served, listen.host, listen.port, GRACE_S, gateway.limits()) if listen is not None else None
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        """For Serve's own ingress, where there is one."""
        return self.served

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Asked by Serve where gateways are autoscaled: how many requests this one is answering."""
        return {autoscaling.ONGOING: float(self.front.answering() if self.front is not None else 0)}

    async def __del__(self) -> None:
        """Asked by Serve when it stops this gateway."""
        if self.front is not None:
            await self.front.stop()


def build(args: Args) -> ray.serve.Application:
    """The application of a Serve config's `args`, with its models in catalogue order.

    A deployment is named as the model whose engine it holds; the LoRA adapters on it have none of their own.
    """
    replicas = {
        name: ray.serve.deployment(Replica).options(**_options(name, entry)).bind(entry, args.adapters(name))
        for name, entry in args.engines().items()
    }
    return ray.serve.deployment(Gateway).options(**_options("gateway", args.gateway)).bind(args, replicas)


def _options(name: str, placed: Placed) -> dict[str, object]:
    count: dict[str, object] = (
        {"num_replicas": placed.replicas}
        if placed.autoscaling is None
        else {"autoscaling_config": placed.autoscaling.config()}
    )
    return {
        **count,
        "name": name,
        "ray_actor_options": {
            "num_cpus": placed.num_cpus,
            "num_gpus": placed.num_gpus,
            "resources": placed.resources,
        },
        "max_ongoing_requests": placed.max_ongoing_requests,
        # A dead engine is noticed after three failed checks; a model that loads answers them, so they may be quick.
        "health_check_period_s": 1,
        "health_check_timeout_s": 30,
        "graceful_shutdown_wait_loop_s": 0.1,
        "graceful_shutdown_timeout_s": 10,
    }
