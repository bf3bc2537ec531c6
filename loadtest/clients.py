"""Runs other projects' clients against a server: on a model and on a fan-out, whole and streamed; prints a table.

    python -m loadtest.clients --url http://127.0.0.1:8000 --model toy-llava --fan-out 'vqa:*'

It imports nothing of this project, so that it runs with the interpreter in which the clients are installed. A client
that is not there is left out, and said so. --tools: a model that calls functions. --tokenizer: a folder with a
tokenizer, for clients that count tokens themselves.
"""

import argparse
import base64
import contextlib
import functools
import importlib
import importlib.metadata
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PICTURE = Path(__file__).parents[1] / "serve" / "toy" / "scenes" / "circles.png"
QUESTION = "how many shapes are there?"
SECONDS = 120.0
"""Longest run of a client that is a program of its own."""
REQUESTS = 4
"""Requests of such a client."""
Run = Callable[..., None]
"""(what is done, a function, its arguments): calls the function, which returns something true, and prints a row."""


@dataclass(frozen=True)
class Server:
    """The server and the names of what is asked. tools: a model that calls functions; None: none is."""

    url: str
    key: str
    model: str
    fan_out: str
    tools: str | None
    tokenizer: str | None

    @property
    def api(self) -> str:
        return f"{self.url}/v1"

    @property
    def targets(self) -> dict[str, str]:
        return {"model": self.model, "fan-out": self.fan_out}


def picture_url() -> str:
    return "data:image/png;base64," + base64.b64encode(PICTURE.read_bytes()).decode()


def messages(system: str | None = None) -> list[dict[str, Any]]:
    """Return a question about the picture as OpenAI's messages."""
    parts = [{"type": "image_url", "image_url": {"url": picture_url()}}, {"type": "text", "text": QUESTION}]
    first = [] if system is None else [{"role": "system", "content": system}]
    return [*first, {"role": "user", "content": parts}]


def items() -> list[dict[str, Any]]:
    """Return the same as a response's input."""
    parts = [{"type": "input_image", "image_url": picture_url()}, {"type": "input_text", "text": QUESTION}]
    return [{"role": "user", "content": parts}]


def function() -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"number": {"type": "integer"}}, "required": ["number"]}
    return {"name": "tell", "description": "Tell the number of shapes.", "parameters": parameters}


def openai_client(server: Server, run: Run) -> None:
    openai = importlib.import_module("openai")
    client = openai.OpenAI(base_url=server.api, api_key=server.key)

    def chat(model: str, **more: Any) -> Any:
        message = client.chat.completions.create(model=model, messages=messages(), **more).choices[0].message
        return message.tool_calls or message.content

    def streamed_chat(model: str, **more: Any) -> Any:
        with client.chat.completions.stream(model=model, messages=messages(), **more) as stream:
            message = stream.until_done().get_final_completion().choices[0].message
        return message.tool_calls or message.content

    def respond(model: str) -> Any:
        return client.responses.create(model=model, input=items()).output_text

    def streamed_response(model: str) -> Any:
        with client.responses.stream(model=model, input=items()) as stream:
            return stream.until_done().get_final_response().output_text

    for target, model in server.targets.items():
        run(f"{target}: chat", chat, model)
        run(f"{target}: chat, streamed", streamed_chat, model)
        run(f"{target}: response", respond, model)
        run(f"{target}: response, streamed", streamed_response, model)
        run(f"{target}: batch", _batch, client, model)
    choices: dict[str, Any] = {
        "auto": "auto",
        "required": "required",
        "named": {"type": "function", "function": {"name": "tell"}},
    }
    for name, choice in choices.items() if server.tools else ():
        wanted: dict[str, Any] = {"tools": [{"type": "function", "function": function()}], "tool_choice": choice}
        run(f"tools, {name}", functools.partial(chat, **wanted), server.tools)
        run(f"tools, {name}, streamed", functools.partial(streamed_chat, **wanted), server.tools)
    run("models", lambda: server.model in [model.id for model in client.models.list()])


def langchain(server: Server, run: Run) -> None:
    chat = importlib.import_module("langchain_openai").ChatOpenAI
    kinds = importlib.import_module("langchain_core.messages")
    question = kinds.HumanMessage(content=messages()[0]["content"])
    with_system = [kinds.SystemMessage(content="Be short."), question]

    def llm_of(model: str, responses: bool) -> Any:
        return chat(model=model, base_url=server.api, api_key=server.key, use_responses_api=responses)

    def invoke(model: str, responses: bool) -> Any:
        return llm_of(model, responses).invoke(with_system).text

    def stream(model: str, responses: bool) -> Any:
        return "".join(part.text for part in llm_of(model, responses).stream(with_system))

    def call(model: str, responses: bool) -> Any:
        bound = llm_of(model, responses).bind_tools([{"type": "function", "function": function()}])
        return bound.invoke([question]).tool_calls

    def structured(model: str, responses: bool) -> Any:
        schema = {**function()["parameters"], "title": "Shapes"}
        return llm_of(model, responses).with_structured_output(schema, method="json_schema").invoke([question])

    for way, responses in (("chat", False), ("responses", True)):
        for target, name in server.targets.items():
            run(f"{target}: {way}, with a system message", invoke, name, responses)
            run(f"{target}: {way}, streamed", stream, name, responses)
        if server.tools is not None:
            run(f"tools: {way}", call, server.tools, responses)
            run(f"schema: {way}", structured, server.tools, responses)


def llama_index(server: Server, run: Run) -> None:
    like = importlib.import_module("llama_index.llms.openai_like").OpenAILike
    llms = importlib.import_module("llama_index.core.llms")
    blocks = [llms.ImageBlock(image=PICTURE.read_bytes()), llms.TextBlock(text=QUESTION)]
    question = [llms.ChatMessage(role="user", blocks=blocks)]

    def chat(llm: Any) -> Any:
        return llm.chat(question).message.content

    def stream(llm: Any) -> Any:
        return list(llm.stream_chat(question))[-1].message.content

    for target, name in server.targets.items():
        llm = like(model=name, api_base=server.api, api_key=server.key, is_chat_model=True, context_window=2048)
        run(f"{target}: chat", chat, llm)
        run(f"{target}: chat, streamed", stream, llm)


def instructor(server: Server, run: Run) -> None:
    library, openai = importlib.import_module("instructor"), importlib.import_module("openai")
    shapes = importlib.import_module("pydantic").create_model("Shapes", number=(int, ...))

    def ask(mode: str, model: str) -> Any:
        client = library.from_openai(openai.OpenAI(base_url=server.api, api_key=server.key), mode=library.Mode[mode])
        fields = {"model": model, "response_model": shapes, "max_retries": 0}
        question = items() if mode.startswith("RESPONSES") else messages()  # it sends them as they are
        return client.chat.completions.create(messages=question, **fields)

    for mode in ("JSON", "JSON_SCHEMA", "MD_JSON"):
        run(f"model: {mode}", ask, mode, server.tools or server.model)
    for mode in ("TOOLS", "TOOLS_STRICT", "RESPONSES_TOOLS") if server.tools else ():
        run(f"tools: {mode}", ask, mode, server.tools)


def litellm(server: Server, run: Run) -> None:
    library = importlib.import_module("litellm")

    def common(model: str) -> dict[str, Any]:
        return {"model": f"openai/{model}", "api_base": server.api, "api_key": server.key}

    def chat(model: str) -> Any:
        return library.completion(**common(model), messages=messages()).choices[0].message.content

    def stream(model: str) -> Any:
        chunks = library.completion(**common(model), messages=messages(), stream=True)
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    def respond(model: str) -> Any:
        return library.responses(**common(model), input=items()).output[0].content[0].text

    def streamed_response(model: str) -> Any:
        *_, last = library.responses(**common(model), input=items(), stream=True)
        return last.response.output[0].content[0].text

    for target, name in server.targets.items():
        run(f"{target}: chat", chat, name)
        run(f"{target}: chat, streamed", stream, name)
        run(f"{target}: response", respond, name)
        run(f"{target}: response, streamed", streamed_response, name)


def aiperf(server: Server, run: Run) -> None:
    def answered(folder: Path) -> int:
        (path,) = folder.glob("artifacts/*/profile_export_aiperf.json")
        return int(json.loads(path.read_bytes())["request_count"]["avg"])

    for target, name in server.targets.items():
        for way in ("chat", "chat, streamed"):
            options = ["profile", "--model", name, "--url", server.url, "--endpoint-type", "chat"]
            options += ["--concurrency", "2", "--request-count", str(REQUESTS), "--tokenizer", str(server.tokenizer)]
            options += ["--synthetic-input-tokens-mean", "8", "--output-tokens-mean", "8", "--ui", "none"]
            options += ["--image-width-mean", "64", "--image-height-mean", "64", "--api-key", server.key]
            options += ["--streaming"] if "streamed" in way else []
            run(f"{target}: {way}", _program, answered, "aiperf", *options)


def guidellm(server: Server, run: Run) -> None:
    def answered(folder: Path) -> int:
        (benchmark,) = json.loads((folder / "out.json").read_bytes())["benchmarks"]
        return int(benchmark["metrics"]["request_totals"]["successful"])

    columns = {"text_column": "prompt", "image_column": "image"}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        row = {"prompt": QUESTION, "image": picture_url(), "output_tokens_count": 8}
        data.write_text("".join(json.dumps(row) + "\n" for _ in range(REQUESTS)))
        for target, name in server.targets.items():
            for way in ("chat", "chat, streamed"):
                backend = {"kind": "openai_http", "target": server.url, "model": name, "api_key": server.key}
                parts: dict[str, dict[str, Any]] = {
                    "backend": {**backend, "stream": "streamed" in way},
                    "profile": {"kind": "synchronous"},
                    "constraint": {"kind": "max_requests", "count": REQUESTS},
                    "data": {"kind": "json_file", "path": str(data)},
                    "data-column-mapper": {"kind": "generative_column_mapper", "column_mappings": columns},
                    "tokenizer": {"kind": "huggingface_auto", "model": str(server.tokenizer)},
                    "output": {"kind": "json", "path": "out.json"},
                }
                options = [f"--{name}={json.dumps(part)}" for name, part in parts.items()]
                run(f"{target}: {way}", _program, answered, "guidellm", "run", *options)


def vllm_bench(server: Server, run: Run) -> None:
    def answered(folder: Path) -> int:
        return int(json.loads((folder / "out.json").read_bytes())["completed"])

    for target, name in server.targets.items():
        options = ["bench", "serve", "--backend", "openai-chat", "--base-url", server.url, "--model", name]
        options += ["--endpoint", "/v1/chat/completions", "--tokenizer", str(server.tokenizer)]
        options += ["--dataset-name", "random-mm", "--num-prompts", str(REQUESTS), "--random-input-len", "8"]
        options += ["--random-output-len", "8", "--random-mm-base-items-per-request", "1"]
        options += ["--random-mm-bucket-config", "{(64, 64, 1): 1.0}", "--random-mm-num-mm-items-range-ratio", "0"]
        options += ["--header", f"Authorization=Bearer {server.key}", "--save-result", "--result-filename", "out.json"]
        run(f"{target}: chat, streamed", _program, answered, "vllm", *options)


CLIENTS: dict[str, tuple[str, Callable[[Server, Run], None]]] = {
    "openai": ("openai", openai_client),
    "LangChain": ("langchain-openai", langchain),
    "LlamaIndex": ("llama-index-llms-openai-like", llama_index),
    "instructor": ("instructor", instructor),
    "LiteLLM": ("litellm", litellm),
    "aiperf": ("aiperf", aiperf),
    "guidellm": ("guidellm", guidellm),
    "vllm bench serve": ("vllm", vllm_bench),
}
"""Each client's package and its steps."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.clients", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="toy-llava")
    parser.add_argument("--fan-out", default="vqa:*")
    parser.add_argument("--tools", help="a model that calls functions")
    parser.add_argument("--tokenizer", help="a folder, for aiperf, guidellm and vllm bench serve")
    parser.add_argument("--only", help="clients, by commas")
    given = parser.parse_args()
    server = Server(given.url, given.key, given.model, given.fan_out, given.tools, given.tokenizer)
    chosen = given.only.split(",") if given.only else list(CLIENTS)
    if unknown := set(chosen) - CLIENTS.keys():
        parser.error(f"--only: there is no client {', '.join(sorted(unknown))}; these are: {', '.join(CLIENTS)}")
    failed: list[str] = []
    ran = 0
    for name in chosen:
        package, steps = CLIENTS[name]
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if _path(package) is None:
                print(f"| {name} | | not installed | |", flush=True)
                continue
            version = ""
        row = f"| {name} {version} |"

        def run(step: str, work: Callable[..., Any], *arguments: Any, row: str = row) -> None:
            nonlocal ran
            ran += 1
            began = time.monotonic()
            why = _failure(work, *arguments)
            failed.extend([step] if why else [])
            print(f"{row} {step} | {why or 'ok'} | {time.monotonic() - began:.1f} s |", flush=True)

        steps(server, run)
    if not ran:
        print("clients: none of them is installed in this environment, so nothing was tried.", file=sys.stderr)
        return 2
    return 1 if failed else 0


def _failure(work: Callable[..., Any], *arguments: Any) -> str | None:
    """Return why a step failed, in one line; None where it did not."""
    noise = io.StringIO()
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            result = work(*arguments)
    except Exception as error:  # any: it is another project's code
        return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return None if result else "nothing came back"


def _batch(client: Any, model: str) -> bool:
    """Run a batch of two requests, and return whether both were answered."""
    body = {"model": model, "messages": messages()}
    line = {"method": "POST", "url": "/v1/chat/completions", "body": body}
    lines = "".join(json.dumps({"custom_id": name, **line}) + "\n" for name in ("a", "b"))
    file = client.files.create(file=("in.jsonl", lines.encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    end = time.monotonic() + SECONDS
    while batch.status not in ("completed", "failed", "expired", "cancelled") and time.monotonic() < end:
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    text = client.files.content(batch.output_file_id).text
    return sorted(json.loads(answer)["custom_id"] for answer in text.splitlines()) == ["a", "b"]


def _program(answered: Callable[[Path], int], name: str, *options: str) -> bool:
    """Run a client that is a program of its own, in a new folder. Return whether all REQUESTS requests were answered.

    answered: reads their number in the folder: the programs end with status 0 also where all have failed. Raises
    RuntimeError with the program's last words.
    """
    with tempfile.TemporaryDirectory() as folder:
        run = subprocess.run(
            [_path(name) or name, *options],
            cwd=folder,
            env=os.environ | {"OPENAI_API_KEY": "none", "NO_COLOR": "1"},
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if run.returncode:
            raise RuntimeError((run.stderr or run.stdout)[-300:])
        return answered(Path(folder)) == REQUESTS


def _path(program: str) -> str | None:
    """Return the path of a program, beside this interpreter or on the path; None where there is none."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)


if __name__ == "__main__":
    raise SystemExit(main())
