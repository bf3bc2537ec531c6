"""A server with keys under a real Ray, as a config asks for it; its models only say what they are told."""

from collections.abc import Iterator

import httpx
import pytest
import yaml
from running import Running
from served import LLAVA, message

from deployments import config
from serve.wire.keys import made

pytestmark = pytest.mark.engine

KEY, ENTRY = made("alice")


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"{ENTRY}\n")
    gateway = {"keys_file": str(folder / "keys"), "requests_per_minute": 3}
    args = {"models": [{"name": LLAVA, "simulate": {"replies": "red"}}], "gateway": gateway}
    file = folder / "config.yaml"
    file.write_text(yaml.dump({"applications": [{"import_path": config.APP, "args": args}]}))
    running = Running("--config", str(file))
    try:
        yield running.wait_for("Diptych is ready")
    finally:
        code = running.interrupt()
    assert code == 0, running.said()
    assert not running.left() and KEY not in running.said()


def test_it_starts_and_lets_in_who_has_a_key(guarded: Running) -> None:
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        assert client.get("/health").status_code == 200
        for path in ("/", "/ready", "/metrics", "/v1/models"):
            assert client.get(path).status_code == 401
        asked = {"model": LLAVA, "messages": [message()]}
        client.headers["authorization"] = f"Bearer {KEY}"
        name = {"x-request-id": "mine", "x-request-timeout-seconds": "0"}
        replies = [client.post("/v1/chat/completions", json=asked, headers=name) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert replies[0].json()["id"] == "chatcmpl-mine" and replies[0].headers["x-request-id"] == "mine"
        assert client.get("/ready").json()["models"] == {LLAVA: "ready"}
