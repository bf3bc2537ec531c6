"""Runs locust against a server on loopback, in processes of their own: it patches sockets and threads."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import free_port
from served import LLAVA, PALIGEMMA, listening, served
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.engines.fake import FakeEngine

ROOT = Path(__file__).parents[2]
NAP_S = 0.2


def locust(url: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-W", "error", "-m", "locust", "-f", "loadtest/locustfile.py", "--headless"]
    command += ["--host", url, "--tasks", "vqa,caption", "--only-summary", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "COV_"))}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)


def rows(path: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["method"], row["name"]): row for row in json.loads(path.read_text())}


def mean(row: dict[str, Any]) -> float:
    return float(row["total_response_time"] / row["num_requests"])


@pytest.mark.slow
def test_good_run_has_every_row_and_meets_its_objectives(tmp_path: Path) -> None:
    engines = [FakeEngine("red red red red", delay_s=NAP_S) for _ in range(2)]
    port = str(free_port())
    with listening(served(*engines)) as url:
        ran = locust(
            url,
            *"--users 6 --spawn-rate 6 --run-time 4 --stop-timeout 30 --repeat 4 --processes 1".split(),
            *("--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--master-port", port),
            *("--html", str(tmp_path / "report.html"), "--json-file", str(tmp_path / "rows")),
            *("--slo", "failures < 0.1%", "--slo", "TTFT p95 < 60 s", "--slo", "COLUMN toy-llava p99 < 60 s"),
        )
    assert ran.returncode == 0, ran.stderr
    assert "All 3 SLOs met." in ran.stdout and "ResourceWarning" not in ran.stderr
    logged = rows(tmp_path / "rows.json")
    kinds = {kind for kind, _ in logged}
    assert kinds == {"WHOLE", "STREAM", "TTFT", "ITL", "COLUMN", "MERGED"}
    assert {name for kind, name in logged if kind == "COLUMN"} == {LLAVA, PALIGEMMA}
    assert {name.split()[0] for kind, name in logged if kind in ("WHOLE", "STREAM")} == {"chat", "task", "fan-out"}
    # three naps lie between the first word and the last: a client that waits for 1 KiB gets both at once
    for door in {"task", "fan-out"} & {name for kind, name in logged if kind == "MERGED"}:
        assert mean(logged["MERGED", door]) - mean(logged["TTFT", door]) > 1000 * NAP_S
        assert mean(logged["ITL", door]) > 1000 * NAP_S / 2
    report = (tmp_path / "report.html").read_text()
    assert "all objectives met" in report and "COLUMN toy-llava p99 &lt; 60 s" in report


@pytest.mark.slow
def test_failed_model_fails_its_column_its_requests_and_the_run(tmp_path: Path) -> None:
    engines = FakeEngine("red red", delay_s=0.02, fail_after=1), FakeEngine("red red", delay_s=0.02)
    with listening(served(*engines)) as url:
        ran = locust(
            url,
            *"--users 4 --run-time 2 --stop-timeout 30 --shape soak --pace 10 --mix task=1,fan-out=1".split(),
            *("--html", str(tmp_path / "report.html"), "--json-file", str(tmp_path / "rows")),
            *("--slo", "failures < 1%", "--slo", "COLUMN toy-paligemma failures < 1%", "--slo", "rate > 100000"),
        )
    assert ran.returncode == 1, ran.stderr
    assert "MISSED  failures < 1%: 100.00%" in ran.stdout and "MISSED  rate > 100000" in ran.stdout
    assert "met     COLUMN toy-paligemma failures < 1%: 0.00%" in ran.stdout
    assert "2 of 3 SLOs MISSED." in ran.stdout
    logged = rows(tmp_path / "rows.json")
    assert logged["COLUMN", LLAVA]["num_failures"] == logged["COLUMN", LLAVA]["num_requests"] > 0
    assert logged["COLUMN", PALIGEMMA]["num_failures"] == 0
    assert not any(name.startswith("chat") for _, name in logged)
    report = (tmp_path / "report.html").read_text()
    assert "2 of 3 objectives missed" in report and f"{LLAVA}: error (model_error)" in report


def silent_after(count: int, app: ASGIApp) -> ASGIApp:
    """Return the app, which answers so many POST requests and leaves all later ones without an answer."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal count
        if scope["type"] == "http" and scope["method"] == "POST":
            count -= 1
            while count < 0:
                if (await receive())["type"] == "http.disconnect":
                    return
        await app(scope, receive, send)

    return answer


@pytest.mark.slow
def test_requests_without_an_answer_at_the_end_fail_the_run(tmp_path: Path) -> None:
    with listening(silent_after(20, served())) as url:
        ran = locust(
            url,
            *"--users 3 --spawn-rate 3 --run-time 2 --stop-timeout 1 --repeat 4".split(),
            *("--slo", "failures < 0.1%", "--json-file", str(tmp_path / "rows")),
        )
    assert ran.returncode == 1 and "MISSED  failures < 0.1%" in ran.stdout, ran.stdout
    logged = rows(tmp_path / "rows.json")
    assert sum(row["num_failures"] for (kind, _), row in logged.items() if kind in ("WHOLE", "STREAM")) == 3


@pytest.mark.slow
def test_run_without_a_server_ends_with_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
    ran = locust(url)
    assert ran.returncode == 2 and f"loadtest: No Diptych answers at {url}." in ran.stderr


@pytest.mark.slow
def test_invalid_objective_ends_the_run_at_once() -> None:
    ran = locust("http://127.0.0.1:9", "--slo", "be fast")
    assert ran.returncode == 2 and "loadtest: 'be fast' is no SLO." in ran.stderr


def test_locust_is_not_imported_by_the_tests() -> None:
    assert not {"gevent", "locust"} & set(sys.modules)
