"""A limit is set by its name, in a config and, where KeyLimits has it, by a key's entry; what exceeds it is refused.

A new limit needs a line in EXCEEDED here.
"""

from typing import Any

import pytest
from served import URL, calling, router

from deployments.args import GatewayArgs
from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys, new_key
from serve.limits import KeyLimits, Limits, RateLimits

EXCEEDED: dict[str, tuple[float, dict[str, Any], int, str | None]] = {
    "max_image_megapixels": (0.001, {}, 413, "image"),
    "max_models": (1, {}, 400, "models"),
    "max_values": (2, {}, 400, None),
    "max_body_mb": (0.0001, {}, 413, None),
}
"""By limit: a low value, fields of a vqa request beside image and question that exceed it, and the refusal's status and
param."""
ELSEWHERE = {  # what it takes time or several requests to exceed
    *RateLimits.model_fields,  # test_authentication.py
    *("body_timeout_s", "head_timeout_s", "write_timeout_s"),  # test_request_limits.py, server/test_timed_protocol.py
}


def test_limit_has_a_request_beyond_the_limit() -> None:
    missing = Limits.model_fields.keys() - EXCEEDED.keys() - ELSEWHERE
    assert not missing, (
        f"add {', '.join(missing)} to EXCEEDED in tests/api/test_limits.py, with a request that exceeds it"
    )


@pytest.mark.parametrize("set_by", ["config", "key"])
@pytest.mark.parametrize("name", EXCEEDED)
async def test_request_beyond_a_limit_is_refused(name: str, set_by: str) -> None:
    value, fields, status, param = EXCEEDED[name]
    key, entry = new_key("carol")
    body, carol = {"image": URL, "question": "what?", **fields}, {"authorization": f"Bearer {key}"}
    if set_by == "key" and name not in KeyLimits.model_fields:
        with pytest.raises(ValueError, match=f"{name}|followed by"):
            Keys([f"{entry}:{name}={value}"])
        return
    limits = GatewayArgs.model_validate({name: value} if set_by == "config" else {}).limits()
    keys = Keys([f"{entry}:{name}={value}" if set_by == "key" else entry])
    async with calling(create_app(router(), limits=limits, access=Access(keys=keys))) as client:
        refused = await client.post("/v1/tasks/vqa", json=body, headers=carol)
    assert refused.status_code == status, f"{name} is not checked: {refused.text}"
    assert refused.json()["error"]["param"] == param
    async with calling(create_app(router(), access=Access(keys=Keys([entry])))) as client:
        assert (await client.post("/v1/tasks/vqa", json=body, headers=carol)).status_code == 200, (
            f"by default {name} is low"
        )
