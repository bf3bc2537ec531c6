"""Health, readiness, metrics and pages."""

import asyncio
import base64
import json
import re
import subprocess
from typing import Any

import httpx
import pytest
from asgi_calls import call
from http_calls import VQA, get
from served import LLAVA, PALIGEMMA, URL, calling, message, picture, plain, router, served

from k8s.checks import rules
from serve.api import pages
from serve.api.app import create_app
from serve.api.metrics import Metrics
from serve.engines.base import State
from serve.engines.energy import EnergyMeter
from serve.engines.fake import FakeEngine
from serve.errors import Unavailable
from serve.media import decoding
from serve.media.shared_pixels import SharedPixels
from serve.models import MODELS
from serve.router import Router
from serve.router import router as routers
from serve.tasks.reply import Merged
from serve.worker import Worker


async def test_health_is_ok() -> None:
    assert (await get("/health")).json() == {"status": "ok"}


async def test_ready_reports_the_state_of_each_model() -> None:
    app_router = router(ready=False)
    app = create_app(app_router)
    llava, paligemma = app_router.routes.values()
    starting = await get("/ready", app)
    assert starting.status_code == 503
    assert starting.json()["status"] == "starting"
    assert starting.json()["models"] == {LLAVA: "starting", PALIGEMMA: "starting"}
    assert starting.json()["details"][LLAVA]["step"] == "waiting to start"
    llava.mark("ready", "ready")  # type: ignore[attr-defined]
    assert (await get("/ready", app)).status_code == 200
    paligemma.mark("failed", "its weights are damaged")  # type: ignore[attr-defined]
    degraded = await get("/ready", app)
    assert (degraded.status_code, degraded.json()["status"]) == (200, "degraded")
    assert list(degraded.json()["details"]) == [PALIGEMMA]
    assert degraded.json()["details"][PALIGEMMA]["step"] == "its weights are damaged"
    llava.mark("failed", "x")  # type: ignore[attr-defined]
    assert (await get("/ready", app)).status_code == 503
    llava.mark("asleep", "it starts when it is asked")  # type: ignore[attr-defined]
    asleep = await get("/ready", app)
    assert asleep.status_code == 200  # else no load balancer would send the request that wakes it
    assert (asleep.json()["status"], asleep.json()["models"]) == ("degraded", {LLAVA: "asleep", PALIGEMMA: "failed"})
    assert list(asleep.json()["details"]) == [LLAVA, PALIGEMMA]


@pytest.mark.parametrize(
    ("states", "status", "code"),
    [
        (("asleep", "asleep"), "ready", 200),
        (("asleep", "starting"), "ready", 200),
        (("ready", "asleep"), "ready", 200),
        (("starting", "failed"), "starting", 503),
        (("failed", "failed"), "degraded", 503),
    ],
)
async def test_sleeping_model_counts_as_available(states: tuple[State, State], status: str, code: int) -> None:
    app_router = router(ready=False)
    for worker, state in zip(app_router.routes.values(), states, strict=True):
        worker.mark(state, "x")  # type: ignore[attr-defined]
    app = create_app(app_router)
    reply = await get("/ready", app)
    assert (reply.status_code, reply.json()["status"]) == (code, status)
    assert tuple(reply.json()["models"].values()) == states
    listed = (await get("/v1/models", app)).json()["data"]
    assert tuple(entry["diptych"]["state"] for entry in listed[:2]) == states
    metrics = (await get("/metrics", app)).text
    for name, state in zip((LLAVA, PALIGEMMA), states, strict=True):
        assert f'diptych_model_state{{model="{name}",state="{state}"}} 1.0' in metrics


async def test_ready_waits_until_required_models_were_loaded_once() -> None:
    app_router = router(ready=False)
    llava, paligemma = app_router.routes.values()
    app = create_app(app_router, awaited={PALIGEMMA})
    llava.mark("ready", "ready")  # type: ignore[attr-defined]
    paligemma.mark("failed", "its weights are damaged")  # type: ignore[attr-defined]
    waiting = await get("/ready", app)
    assert (waiting.status_code, waiting.json()["status"], waiting.json()["awaited"]) == (503, "starting", [PALIGEMMA])
    paligemma.mark("ready", "ready")  # type: ignore[attr-defined]
    assert (await get("/ready", app)).status_code == 200
    paligemma.mark("failed", "its engine died")  # type: ignore[attr-defined]
    lost = await get("/ready", app)
    assert (lost.status_code, lost.json()["status"], lost.json()["awaited"]) == (200, "degraded", [])


async def test_metrics_count_requests_and_replies() -> None:
    app = served(FakeEngine("red"), FakeEngine("red", fail_after=0))
    async with calling(app) as client:
        await client.post("/v1/tasks/vqa", json=VQA)
        await client.get("/a-path-nobody-knows")
        text = (await client.get("/metrics")).text
    assert 'diptych_requests_total{route="/v1/tasks/vqa",status="200"} 1.0' in text
    assert 'diptych_requests_total{route="unmatched",status="404"} 1.0' in text
    assert f'diptych_replies_total{{model="{LLAVA}",status="ok",task="vqa"}} 1.0' in text
    assert f'diptych_replies_total{{model="{PALIGEMMA}",status="error",task="vqa"}} 1.0' in text
    assert 'diptych_request_seconds_bucket{le="+Inf",route="/v1/tasks/vqa"} 1.0' in text
    assert "a-path-nobody-knows" not in text
    assert f'diptych_reply_errors_total{{code="model_error",model="{PALIGEMMA}"}} 1.0' in text
    assert f'diptych_first_word_seconds_count{{model="{LLAVA}",task="vqa"}} 1.0' in text
    assert f'diptych_tokens_total{{kind="output",model="{LLAVA}"}} 1.0' in text
    assert 'diptych_fan_outs_total{outcome="partial",task="vqa"} 1.0' in text
    assert 'diptych_fan_out_models_sum{task="vqa"} 2.0' in text
    assert 'diptych_merge_seconds_count{task="vqa"} 1.0' in text
    assert 'diptych_agreement_sum{task="vqa"} 1.0' in text
    assert "diptych_requests_running 1.0" in text  # the request for the metrics
    assert f'diptych_model_state{{model="{LLAVA}",state="ready"}} 1.0' in text
    assert f'diptych_model_state{{model="{LLAVA}",state="failed"}} 0.0' in text


async def test_energy_is_in_replies_and_metrics_of_a_metered_model_alone() -> None:
    now = iter(range(1000))
    meter = EnergyMeter(lambda: 0.0, lambda: float(next(now)))  # a second at each look
    meter.sample(0.0)
    meter.sample(50.0)
    workers = [Worker(MODELS[LLAVA], FakeEngine("red"), meter=meter), Worker(MODELS[PALIGEMMA], FakeEngine("red"))]
    for worker in workers:
        worker.mark("ready", "ready")
    async with calling(create_app(Router(workers))) as client:
        metered, other = (await client.post("/v1/tasks/vqa", json=VQA)).json()["replies"]
        text = (await client.get("/metrics")).text
    assert metered["energy_j"] == 50.0 and "energy_j" not in other
    assert f'diptych_energy_joules_total{{model="{LLAVA}",task="vqa"}} 50.0' in text
    assert f'diptych_energy_joules_total{{model="{PALIGEMMA}"' not in text


@pytest.mark.slow
@pytest.mark.skipif(not rules.able(), reason="promtool is not installed: apt-get install prometheus")
async def test_promtool_finds_no_fault_in_the_metrics() -> None:
    app = served(FakeEngine("red"), FakeEngine("red", fail_after=0))
    async with calling(app) as client:
        await client.post("/v1/tasks/vqa", json=VQA)
        text = (await client.get("/metrics")).text
    for page, faults in ((text, 0), (text.replace("diptych_replies_total", "diptych_repliesTotal"), 3)):
        command = ["promtool", "check", "metrics"]
        done = await asyncio.to_thread(subprocess.run, command, input=page, text=True, capture_output=True, timeout=60)
        assert done.returncode == faults, done.stdout + done.stderr
        assert bool(done.stdout + done.stderr) == bool(faults), done.stdout + done.stderr


async def test_metrics_count_unanswered_requests_of_a_model() -> None:
    slow, quick = FakeEngine("red", first_delay_s=30), FakeEngine("red")
    app = served(slow, quick)
    async with calling(app) as client:
        jobs = [asyncio.ensure_future(client.post("/v1/tasks/vqa", json=VQA)) for _ in range(2)]
        chat = {"model": LLAVA, "messages": [message("what colour?", URL)]}
        jobs.append(asyncio.ensure_future(client.post("/v1/chat/completions", json=chat)))
        async with asyncio.timeout(10):
            text = ""
            while slow.speaking < 3 or f'diptych_model_requests{{model="{PALIGEMMA}"}} 0.0' not in text:
                await asyncio.sleep(0.01)
                text = (await client.get("/metrics")).text
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        after = (await client.get("/metrics")).text
    assert f'diptych_model_requests{{model="{LLAVA}"}} 3.0' in text
    assert f'diptych_model_requests{{model="{LLAVA}"}} 0.0' in after


async def test_new_app_keeps_metrics_and_drops_removed_models() -> None:
    metrics = Metrics()
    ask = {"image": URL, "question": "what?"}
    async with calling(create_app(router(), metrics=metrics)) as client:
        await client.post("/v1/tasks/vqa", json=ask)
        assert f'diptych_model_state{{model="{LLAVA}",state="ready"}} 1.0' in (await client.get("/metrics")).text
    alone = Router([router().routes[PALIGEMMA]])
    async with calling(create_app(alone, metrics=metrics)) as client:
        await client.post("/v1/tasks/vqa", json=ask)
        text = (await client.get("/metrics")).text
    assert 'diptych_requests_total{route="/v1/tasks/vqa",status="200"} 2.0' in text
    assert f'diptych_model_state{{model="{PALIGEMMA}",state="ready"}} 1.0' in text
    assert f'diptych_model_state{{model="{LLAVA}"' not in text


@pytest.mark.slow
async def test_metrics_count_outcomes_of_fan_outs() -> None:
    app = served(FakeEngine("red", fail_after=0), FakeEngine("red", fail_after=0))
    slow = served(FakeEngine("red"), FakeEngine("red", first_delay_s=9))
    async with calling(app) as client, calling(slow) as other:
        await client.post("/v1/tasks/vqa", json={**VQA, "stream": True})
        await client.post("/v1/tasks/vqa", json={**VQA, "models": ["nobody"]})
        await other.post("/v1/tasks/vqa", json={**VQA, "deadline_s": 0.2})
        failed, partial = (await client.get("/metrics")).text, (await other.get("/metrics")).text
    assert 'diptych_fan_outs_total{outcome="failed",task="vqa"} 1.0' in failed and "partial" not in failed
    assert 'diptych_fan_outs_total{outcome="partial",task="vqa"} 1.0' in partial
    assert f'diptych_reply_errors_total{{code="deadline_exceeded",model="{PALIGEMMA}"}} 1.0' in partial


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("llava", "replied"), [(FakeEngine("red", first_delay_s=9), 0), (FakeEngine("red", fail_after=0), 1)]
)
async def test_metrics_count_a_fan_out_as_left_whatever_had_come(llava: FakeEngine, replied: int, stream: bool) -> None:
    paligemma, metrics = FakeEngine("red", first_delay_s=9), Metrics()
    body = json.dumps({**VQA, "stream": stream}).encode()

    def leaves() -> bool:
        return bool(paligemma.prompts) and metrics.text().count(b"diptych_replies_total{") == replied

    await call(create_app(router(llava, paligemma), metrics=metrics), "/v1/tasks/vqa", [body], leaves=leaves)
    text = metrics.text().decode()
    assert 'diptych_fan_outs_total{outcome="left",task="vqa"} 1.0' in text and 'outcome="failed"' not in text
    assert 'diptych_fan_out_models_sum{task="vqa"} 2.0' in text


async def test_metrics_count_a_fan_out_without_a_merge_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def merge_too_late(*_: Any) -> Merged:
        raise Unavailable("The merge of the replies took too long.")

    monkeypatch.setattr(routers, "merge_replies", merge_too_late)
    async with calling(served()) as client:
        reply = await client.post("/v1/tasks/vqa", json=VQA)
        text = (await client.get("/metrics")).text
    assert reply.status_code == 503
    assert 'diptych_fan_outs_total{outcome="failed",task="vqa"} 1.0' in text and 'outcome="left"' not in text


@pytest.mark.slow
@pytest.mark.parametrize(("path", "root"), [("/", "."), ("/docs", "."), ("/compare/", ".."), ("/compare/a-vs-b", "..")])
async def test_pages_link_their_files_by_relative_urls(path: str, root: str) -> None:
    page = await get(path)
    assert page.status_code == 200
    addresses = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert addresses and all(address.startswith((f"{root}/", "#")) for address in addresses)
    here = "/" if root == "." else "/compare/"
    for address in addresses:
        if "/web/" in address:
            assert (await get(str(httpx.URL(f"http://diptych{here}").join(address).path))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/docs", "/compare/a-vs-b", "/web/app.js", "/web/style.css", "/scenes/three.png"]
)
async def test_pages_forbid_foreign_scripts_and_styles(path: str) -> None:
    headers = (await get(path)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert (
        policy["script-src"] == policy["style-src"] == "'self'" and "unsafe" not in headers["content-security-policy"]
    )
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"


async def test_compare_without_names_redirects() -> None:
    answer = await get("/compare", served())
    assert answer.status_code == 307 and answer.headers["location"] == "compare/"


async def test_all_pages_together_are_under_150_kb_and_sent_in_less_than_75() -> None:
    """Count the bytes of all files; tests/pages holds what a first visit unpacks to 100 KB."""
    folders = {"web": pages.WEB, "scenes/small": pages.SCENES / "small"}
    paths = [f"/{name}/{file.name}" for name, folder in folders.items() for file in folder.iterdir() if file.is_file()]
    async with calling(plain()) as client:
        answers = [await client.get(path) for path in paths]
    assert all(answer.status_code == 200 for answer in answers)
    assert sum(answer.num_bytes_downloaded for answer in answers) < 75_000
    assert sum(len(answer.content) for answer in answers) < 150_000


@pytest.mark.parametrize(
    ("path", "model"), [("/v1/tasks/vqa", ""), ("/v1/chat/completions", "vqa"), ("/v1/chat/completions", LLAVA)]
)
async def test_decoding_does_not_block_other_requests(path: str, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others_went_on = asyncio.Event()
    decode = decoding._decode_file

    async def slowly(*given: Any) -> SharedPixels:
        assert await others_went_on.wait()
        return await decode(*given)

    monkeypatch.setattr(decoding, "_decode_file", slowly)
    url = "data:image/png;base64," + base64.b64encode(picture(1000, 600)).decode()
    body = VQA | {"image": url} if path.endswith("vqa") else {"model": model, "messages": [message(image=url)]}
    async with calling(served()) as client:
        slow = asyncio.create_task(client.post(path, json=body))
        await asyncio.sleep(0.01)
        assert (await client.get("/health")).status_code == 200 and not slow.done()
        others_went_on.set()
        assert (await slow).status_code == 200
