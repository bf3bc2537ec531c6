"""A server whose model calls whatever function it is shown, for other projects' clients: the toys call none.

    .venv/bin/python -m loadtest.calling_server --port 8001
    /tmp/clients/bin/python -m loadtest.clients --url http://127.0.0.1:8001 --model qwen3-vl-2b --tools qwen3-vl-2b

A simulated engine plays qwen3-vl-2b. It calls the first function, with arguments that its parameters allow; it holds to
a schema where it is given one, and answers in fenced JSON otherwise.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from serve.api.app import create_app
from serve.api.batches.runner import BatchRunner
from serve.api.batches.store import BatchStore
from serve.api.chat_completions.tools import CallReader
from serve.engines.base import Prompt, ToolReader, Tools
from serve.engines.fake import FakeEngine
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

MODEL = "qwen3-vl-2b"
NUMBER = 4


class CallingEngine(FakeEngine):
    """An engine whose reply to a prompt with functions is a call."""

    def tool_reader(self, tools: Tools, whole: bool) -> ToolReader:
        return CallReader(None)


def reply(prompt: Prompt) -> Any:
    """Return the reply to a prompt, in one piece."""
    if prompt.sampling.json_schema is not None:
        schema = json.loads(prompt.sampling.json_schema)
        return [json.dumps(value_of(schema, schema))]
    if prompt.tools is not None:
        function = json.loads(prompt.tools.schemas)[0]["function"]
        parameters = function.get("parameters", {"type": "object"})
        return [json.dumps([{"name": function["name"], "parameters": value_of(parameters, parameters)}])]
    return [f'```json\n{{"number": {NUMBER}}}\n```']


def value_of(schema: Any, root: Any) -> Any:
    """Return a value that a JSON schema allows. root: the schema that its references lead into."""
    if not isinstance(schema, dict):
        return NUMBER
    if "$ref" in schema:
        target = root
        for part in schema["$ref"].removeprefix("#").strip("/").split("/"):
            target = target[part] if part else target
        return value_of(target, root)
    for choice in ("anyOf", "oneOf", "allOf"):
        if choice in schema:
            return value_of(schema[choice][0], root)
    if "enum" in schema or "const" in schema:
        return schema["enum"][0] if "enum" in schema else schema["const"]
    match schema.get("type"):
        case "object":
            properties = schema.get("properties", {"number": {"type": "integer"}})
            return {name: value_of(each, root) for name, each in properties.items()}
        case "array":
            return [value_of(schema.get("items", {}), root)]
        case "string":
            return "four"
        case "boolean":
            return True
        case "null":
            return None
    return NUMBER


def app(batches: Path) -> FastAPI:
    """Return the app. batches: a folder for files and batches."""
    worker = Worker(MODELS[MODEL], CallingEngine(reply))
    worker.mark("ready", "ready")
    return create_app(Router([worker]), batches=BatchRunner(BatchStore(batches, days=1, max_mb=10, max_lines=100), 1))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m loadtest.calling_server", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uvicorn.run(app(Path(folder)), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
