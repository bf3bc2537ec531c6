"""A server with keys and traces under a real Ray, with simulated engines."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml
from collected import Collector, collector
from running import Running, command, until
from served import LLAVA, URL, message

from deployments import config
from serve.api.keys import new_key

pytestmark = pytest.mark.ray

KEY, ENTRY = new_key("alice")
ANOTHER, ENTRY_OF_ANOTHER = new_key("bob")
SCRAPER, ENTRY_OF_SCRAPER = new_key("prometheus", "scopes=scrape")


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.proto.collector", reason="the extra otel is not installed")
    with collector() as collecting, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collecting.url)
        yield collecting


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guarded")


@pytest.fixture(scope="module")
def guarded(folder: Path, traces: Collector) -> Iterator[Running]:
    (folder / "keys").write_text(f"{ENTRY}\n{ENTRY_OF_ANOTHER}\n")
    gateway = {
        "keys_file": str(folder / "keys"),
        "requests_per_minute": 3,
        "salt_caches": True,
        "replicas": 2,
        "usage_file": str(folder / "usage"),
        "request_log": {"file": str(folder / "requests")},
    }
    args = {"models": [{"name": LLAVA, "simulate": {"replies": "red"}}], "gateway": gateway}
    file = folder / "config.yaml"
    file.write_text(yaml.dump({"applications": [{"import_path": config.APP, "args": args}]}))
    running = Running("--config", str(file))
    try:
        yield running.wait_for("Diptych is ready")
    finally:
        code = running.interrupt()
    assert code == 0, running.output()
    assert not running.leftovers() and KEY not in running.output()


def test_server_with_keys_lets_in_known_keys_within_their_rate(guarded: Running) -> None:
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        assert client.get("/health").status_code == 200
        for path in ("/", "/ready", "/metrics", "/v1/models"):
            assert client.get(path).status_code == 401
        body = {"model": LLAVA, "messages": [message()]}
        client.headers["authorization"] = f"Bearer {KEY}"
        name = {"x-request-id": "mine", "x-request-timeout-seconds": "0"}
        replies = [client.post("/v1/chat/completions", json=body, headers=name) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 200]
        assert replies[0].json()["id"] == "chatcmpl-mine" and replies[0].headers["x-request-id"] == "mine"
        assert client.get("/ready").json()["models"] == {LLAVA: "ready"}


def test_two_gateways_share_the_rate_and_the_files_of_a_key(guarded: Running, folder: Path) -> None:
    headers = {"authorization": f"Bearer {KEY}"}  # it has used its three requests of this minute in the test before
    body = {"model": LLAVA, "messages": [message()]}
    replies = [  # each on a connection of its own: the kernel spreads them over both gateways
        httpx.post(f"{guarded.url}/v1/chat/completions", json=body, headers=headers, timeout=30) for _ in range(12)
    ]
    statuses = [reply.status_code for reply in replies]
    assert statuses.count(429) >= 11, statuses
    counters = [command(process) for process in guarded.processes() if "QuotaCounter" in command(process)]
    assert len(counters) == 1
    assert until(lambda: (folder / "requests").read_text().count("alice") == 15, 10)

    def used() -> list[tuple[str, int]]:
        with contextlib.closing(sqlite3.connect(folder / "usage")) as file:
            return list(file.execute("SELECT key, sum(tokens) FROM tokens GROUP BY key"))

    tokens = sum(reply["usage"]["total_tokens"] for reply in map(httpx.Response.json, replies) if "usage" in reply)
    assert until(lambda: dict(used()).get("alice", 0) > max(50, tokens), 10)


def test_request_is_a_single_trace_from_gateway_to_model(guarded: Running, traces: Collector) -> None:
    above = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    body = {"image": URL, "question": "what colour?"}
    headers = {"authorization": f"Bearer {ANOTHER}", "traceparent": above}
    reply = httpx.post(f"{guarded.url}/v1/tasks/vqa", json=body, headers=headers, timeout=30)
    assert reply.status_code == 200, reply.text
    model_span, call_span = f"generate_content {LLAVA}", "answer"
    spans = traces.trace(above[3:35], "POST /v1/tasks/vqa", model_span, call_span)
    assert (
        spans[model_span].under == spans["POST /v1/tasks/vqa"].id and spans["POST /v1/tasks/vqa"].under == above[36:52]
    )
    assert spans[call_span].under == spans[model_span].id
    assert (spans[model_span].service, spans[call_span].service) == ("diptych-gateway", "diptych-model")


@pytest.fixture
def gateway(guarded: Running) -> Iterator[httpx.Client]:
    """Yield a client of one gateway: its connection stays with that."""
    with httpx.Client(base_url=guarded.url, timeout=30) as client:
        yield client


def test_changed_keys_file_is_read_while_serving(gateway: httpx.Client, folder: Path) -> None:
    def status(path: str, key: str = ANOTHER) -> int:
        return gateway.get(path, headers={"authorization": f"Bearer {key}"}).status_code

    assert status("/v1/models") == 200
    (folder / "keys").write_text(f"{ENTRY_OF_ANOTHER}\n{ENTRY_OF_SCRAPER}\n")
    assert until(lambda: status("/metrics", SCRAPER) == 200, 60)
    assert status("/v1/models", SCRAPER) == 403 and status("/v1/models", KEY) == 401
    (folder / "keys").write_text("no key\n")  # an unusable file changes nothing
    (folder / "keys").unlink()
    assert not until(lambda: status("/v1/models") != 200, 7)  # it is looked at every 5 s
    (folder / "keys").write_text("")
    assert until(lambda: status("/v1/models") == 401, 60)
    assert status("/metrics", SCRAPER) == 401 and status("/health") == 200
    (folder / "keys").write_text(f"{ENTRY_OF_ANOTHER}\n")
    assert until(lambda: status("/v1/models") == 200, 60)
