"""Asks Serve's controller about deployments, from inside a replica or a gateway."""

import asyncio
from collections.abc import Collection
from typing import Any

import ray.exceptions
import ray.serve
import ray.serve.context
import ray.serve.exceptions
from ray.serve.handle import DeploymentHandle

from deployments.args import APPLICATION
from deployments.routing.pool import Hindrance

UNREACHABLE = (ray.exceptions.RayError, ray.serve.exceptions.RayServeException, TimeoutError)
"""What a handle raises where there is no replica, or none answers."""
ANSWER_S = 5.0
"""Seconds in which other replicas must answer."""
MAX_CHARS = 500


def deployment(name: str, application: str) -> DeploymentHandle:
    """Return a handle of a deployment, which need not exist yet."""
    return ray.serve.get_deployment_handle(name, application, _check_exists=False)


def sibling(name: str) -> DeploymentHandle:
    """Return a handle of another deployment in the application that this process belongs to."""
    return deployment(name, ray.serve.get_replica_context().app_name)


async def other_is_loaded() -> bool:
    """Return whether another replica of this process's deployment runs and has its model loaded.

    Called before this one counts as started, so Serve does not count it. One that does not answer counts as loaded:
    Serve replaces it soon.
    """
    context = ray.serve.get_replica_context()
    applications = (await asyncio.to_thread(ray.serve.status)).applications
    if not applications[context.app_name].deployments[context.deployment].replica_states.get("RUNNING"):
        return False
    try:
        asking = deployment(context.deployment, context.app_name).broadcast("loaded")
        answers = await asking.results_async(timeout_s=ANSWER_S, return_exceptions=True)
    except UNREACHABLE:
        return True
    return any(answer is not False for answer in answers)


async def hindrances(missing: Collection[tuple[str, str]]) -> dict[tuple[str, str], Hindrance]:
    """Return why deployments, each given by its application and name, have no replica, as far as Serve says."""
    applications = (await asyncio.to_thread(ray.serve.status)).applications
    reasons = {key: _hindrance(applications.get(key[0]), key[1]) for key in missing}
    return {key: hindrance for key, hindrance in reasons.items() if hindrance is not None}


async def config_of_gateways() -> dict[str, Any] | None:
    """Return the gateways' `user_config` in the Serve config that Ray was sent; None where it was sent none."""
    details = await asyncio.to_thread(ray.serve.context._get_global_client().get_serve_details)
    sent = details["applications"].get(APPLICATION, {}).get("deployed_app_config") or {}
    return next((deployment.get("user_config") for deployment in sent.get("deployments", ())), None)


def _hindrance(application: Any, name: str) -> Hindrance | None:
    if application is None:
        return Hindrance(False, "Serve has no application for it yet")
    own = application.deployments.get(name)
    message = (own.message if own is not None else "") or application.message
    if not message.strip():
        return None
    # of a traceback, the error
    return Hindrance(application.status == "DEPLOY_FAILED", message.strip().splitlines()[-1].strip()[:MAX_CHARS])
