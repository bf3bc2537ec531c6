"""`diptych batch`: the answers are those of a server, and a later call goes on."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from running import alive
from served import listening, served

from deployments.batch.command import main
from serve.client.storage.parts import Parts, form_of, line_of
from serve.client.storage.sources import Shard
from serve.engines.fake import FakeEngine
from serve.engines.vllm.process_tree import descendants

ROOT = Path(__file__).parents[2]
REPLIES = {
    "toy-llava": "[0.25, 0.25, 0.75, 0.75]",
    "toy-paligemma": "<loc0256><loc0256><loc0767><loc0767> cat",
}
QUESTION = ("--task", "detect", "--labels", "cat")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Return a config of the two toys with simulated engines, whose boxes depend on the picture's size."""
    models = [{"name": name, "num_cpus": 0.1, "simulate": {"replies": reply}} for name, reply in REPLIES.items()]
    file = tmp_path / "config.yaml"
    app = {"name": "diptych", "import_path": "deployments.app:build", "args": {"models": models}}
    file.write_text(json.dumps({"applications": [app]}))
    return file


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(5):
        PIL.Image.new("RGB", (40 + 10 * number, 90 - 10 * number), "red").save(folder / f"{number}.png")
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\x00" * 40)
    return folder


def comparable(line: dict[str, Any]) -> dict[str, Any]:
    """Return a line without its times."""
    replies = [{**reply, "latency_ms": 0, "ttft_ms": 0} for reply in line.get("replies", [])]
    return {**line, "replies": replies} if replies else line


@pytest.mark.ray
def test_answers_equal_those_of_a_server_and_earlier_ones_are_kept(
    config: Path, pictures: Path, tmp_path: Path
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: make install-dev")
    pytest.importorskip("pandas", reason="pandas is not installed: make install-dev")
    engines = [FakeEngine(reply) for reply in REPLIES.values()]
    with listening(served(*engines)) as url:
        command = [sys.executable, "-m", "serve.cli", "run", str(pictures), *QUESTION, "--server", url]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    lines = {line["file"]: line for line in map(json.loads, ran.stdout.splitlines())}
    assert len(lines) == 6 and len({json.dumps(line.get("merged")) for line in lines.values()}) == 6
    out = f"{tmp_path}/answers.parquet"
    earlier = Parts(out, {"task": "detect", "asked": {"labels": ["cat"]}}, Shard(), form_of(out))
    earlier.add({**lines["0.png"], "replies": []})
    earlier.close()
    command = [sys.executable, "-m", "deployments.batch", str(pictures), *QUESTION]
    done = subprocess.run(
        [*command, "--config", str(config), "--out", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )
    assert done.returncode == 1 and "1 have no answer" in done.stderr, done.stderr
    rows = [row for part in sorted(Path(out).glob("part-*")) for row in parquet.read_table(part).to_pylist()]
    answers = {row["file"]: line_of(row) for row in rows}
    assert len(rows) == 5 and answers.pop("0.png")["replies"] == []
    assert {name: comparable(answers[name]) for name in answers} == {
        name: comparable(lines[name]) for name in lines if name not in ("0.png", "bad.png")
    }
    (error,) = map(json.loads, (Path(out) / "errors-00000-of-00001.jsonl").read_text().splitlines())
    assert error == lines["bad.png"]


SWALLOWING = """
import contextlib, sys, time
from deployments.batch import command

def answers(source, question, done):
    for picture in list(source.pictures())[:2]:
        yield {"file": picture.name, "task": "detect", "replies": []}
    while True:
        try:
            print("up", flush=True)
            time.sleep(60)
        except BaseException:  # as Ray does in a callback
            pass

command._answers = answers
command._ray = lambda question, address: (contextlib.nullcontext(), lambda: print("stop", flush=True))
sys.exit(command.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_writes_the_answers_that_are_there_whatever_the_main_thread_does(
    config: Path, pictures: Path, tmp_path: Path, number: int
) -> None:
    out = tmp_path / "answers"
    command = [sys.executable, "-c", SWALLOWING, str(pictures), *QUESTION, "--config", str(config), "--out", f"{out}/"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            assert process.communicate(timeout=30)[0].split() == ["stop", "Stopped."] and process.returncode == 130
        finally:
            process.kill()
    (part,) = out.glob("part-*")
    assert len(part.read_text().splitlines()) == 2
    assert json.loads(next(out.glob("manifest-*")).read_text())["complete"] is False


@pytest.mark.ray
def test_sigterm_during_a_run_leaves_its_answers_and_no_process(config: Path, pictures: Path, tmp_path: Path) -> None:
    body = json.loads(config.read_text())
    for model in body["applications"][0]["args"]["models"]:
        model["simulate"] |= {"slots": 1, "delay_s": 0.1}
    config.write_text(json.dumps(body))
    for number in range(5, 200):
        PIL.Image.new("RGB", (40, 40), "red").save(pictures / f"{number}.png")
    out = tmp_path / "answers"
    command = [sys.executable, "-m", "deployments.batch", str(pictures), *QUESTION]
    command += ["--config", str(config), "--out", f"{out}/"]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    variables["FORCE_COLOR"] = "1"  # so that it says how far it is
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, env=variables) as process:
        assert process.stderr is not None
        screen = b""
        while re.search(rb"[1-9]\d* answers", screen) is None and process.poll() is None:
            screen += process.stderr.read1()
        ours = descendants([process.pid])
        process.terminate()
        screen += process.stderr.read()
        assert process.wait(60) == 130, screen
    answered = [line for part in out.glob("part-*") for line in part.read_text().splitlines()]
    assert 0 < len(answered) < 200 and len(ours) > 3 and not [each for each in ours if alive(each)]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--merge", "none"), "merge: detect merges by"),
        (("--models", "llava-1.5-7b"), "models: The model 'llava-1.5-7b' is not served here"),
        (("--judge", "toy-llava"), "--judge needs a server"),
        (("--task", "caption"), "--labels are for detect"),
        (("--max-tokens", "100000"), "max_tokens"),
        (("--out", "file.jsonl"), "it is a folder"),
        (("--out", "answers.tar"), "pictures stay where they are decoded"),
    ],
)
def test_question_is_refused_before_ray_is_started(
    config: Path, pictures: Path, arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(pictures), *QUESTION, "--config", str(config), "--out", "answers/", *arguments]
    assert main(command) == 2 and says in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "groups", "says"),
    [
        ({"group": "one"}, {"one": {"awake": 1}}, "toy-llava: models of a group take turns"),
        (
            {"spans_nodes": True, "num_gpus": 2, "engine": {"tensor_parallel_size": 2}},
            {},
            "toy-llava: a batch has each engine on one node",
        ),
    ],
)
def test_models_that_a_batch_cannot_place_are_refused(
    entry: dict[str, Any],
    groups: dict[str, Any],
    says: str,
    config: Path,
    pictures: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = json.loads(config.read_text())
    args = body["applications"][0]["args"]
    args["models"][0] |= entry
    args["groups"] = groups
    config.write_text(json.dumps(body))
    command = [str(pictures), *QUESTION, "--config", str(config), "--out", "answers/"]
    assert main(command) == 2 and says in capsys.readouterr().err
