"""A server with keys and traces under a real Ray, as a config asks for it; its models only say what they are told."""

from collections.abc import Iterator

import httpx
import pytest
import yaml
from collected import Collector, collector
from running import Running
from served import LLAVA, URL, message

from deployments import config
from serve.wire.keys import made

pytestmark = pytest.mark.engine

KEY, ENTRY = made("alice")
ANOTHER, ENTRY_OF_ANOTHER = made("bob")


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.proto.collector", reason="the extra otel is not installed")
    with collector() as found, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", found.url)
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, traces: Collector) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text(f"{ENTRY}\n{ENTRY_OF_ANOTHER}\n")
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


def test_a_request_is_one_trace_from_the_gateway_into_its_model(guarded: Running, traces: Collector) -> None:
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    asked = {"image": URL, "question": "what colour?"}
    headers = {"authorization": f"Bearer {ANOTHER}", "traceparent": above}
    reply = httpx.post(f"{guarded.url}/v1/tasks/vqa", json=asked, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    column, call = f"generate_content {LLAVA}", "answer"
    found = traces.of(above[3:35], "POST /v1/tasks/vqa", column, call)
    assert found[column].under == found["POST /v1/tasks/vqa"].id and found["POST /v1/tasks/vqa"].under == above[36:52]
    assert found[call].under == found[column].id
    assert (found[column].service, found[call].service) == ("diptych-gateway", "diptych-model")
