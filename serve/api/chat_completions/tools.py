"""Functions that a request lets a model call: their definitions, and what the model's prompt and reply become."""

import dataclasses
import json
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field
from pydantic_core import from_json

from serve.api.chat_completions.messages import StrictModel
from serve.engines.base import Piece, ToolCallPart, Tools
from serve.engines.json_schema import MAX_DEPTH, is_nested_deeper, schema_text
from serve.errors import BadRequest
from serve.models.base import Model

MAX_TOOLS = 128
MAX_SCHEMAS = 100_000
"""Characters of all definitions, as JSON."""
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Function(StrictModel):
    name: FunctionName
    description: Annotated[str, Field(max_length=10_000)] | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(StrictModel):
    type: Literal["function"]
    function: Function


class FunctionReference(StrictModel):
    name: FunctionName


class NamedChoice(StrictModel):
    type: Literal["function"]
    function: FunctionReference


ToolChoice = Literal["none", "auto", "required"] | NamedChoice


class ToolFields(Protocol):
    """The fields of a request that are about functions."""

    tools: list[FunctionTool] | None
    tool_choice: ToolChoice | None
    parallel_tool_calls: bool | None


@dataclasses.dataclass(frozen=True)
class ToolUse:
    """The functions that a reply may call. tools: for the prompt. json_schema: what the reply is held to, where it must
    call one. function: the one that it must call; None: any. single: at most one call."""

    tools: Tools
    json_schema: str | None
    function: str | None
    single: bool

    def reader(self) -> "CallReader | None":
        """Return a reader for a reply that is held to a schema; None where the engine's process reads the calls."""
        return None if self.json_schema is None else CallReader(self.function)


def tool_use(request: ToolFields, model: Model) -> ToolUse | None:
    """Return how a model's reply may call functions; None where the request wants no calls.

    Raises BadRequest for a model that calls none, and naming the field at fault.
    """
    choice = request.tool_choice
    if not request.tools or choice == "none":
        if choice not in (None, "none", "auto"):
            raise BadRequest("tool_choice needs tools.", param="tool_choice")
        return None
    if model.tools is None:
        raise BadRequest(f"{model.name} calls no tools.", param="tools", code="unsupported_parameter")
    names = [tool.function.name for tool in request.tools]
    if len(set(names)) < len(names):
        raise BadRequest("Two tools have one name.", param="tools")
    for at, tool in enumerate(request.tools):
        _check(tool.function.parameters or {}, _path(at))
    schemas = json.dumps([tool.model_dump(exclude_none=True) for tool in request.tools], ensure_ascii=False)
    if len(schemas) > MAX_SCHEMAS:
        raise BadRequest(f"The tools have more than {MAX_SCHEMAS:,} characters together.", param="tools")
    single = request.parallel_tool_calls is False
    if choice in (None, "auto"):
        return ToolUse(Tools(schemas, model.tools), None, None, single)
    if isinstance(choice, NamedChoice):
        name = choice.function.name
        if name not in names:
            raise BadRequest(f"There is no tool {name!r} among the tools.", param="tool_choice.function.name")
        at = names.index(name)
        schema = _parameters(request.tools[at])
        return ToolUse(Tools(schemas), schema_text(schema, _path(at)), name, single)
    return ToolUse(Tools(schemas), _any_call(request.tools, single), None, single)


def call_id() -> str:
    return f"call_{secrets.token_hex(12)}"


class CallReader:
    """A reader of a reply that a grammar holds to a call: to a function's arguments, or to a list of calls."""

    def __init__(self, function: str | None) -> None:
        self._function = function
        self._begun = False
        self._text: list[str] = []

    def feed(self, piece: Piece) -> Piece:
        """Return the next piece with its calls in `tool_calls`, and without their text."""
        if self._function is not None:
            first = ToolCallPart(0, piece.text) if self._begun else ToolCallPart(
                0, piece.text, call_id(), self._function
            )  # fmt: skip
            self._begun = True
            parts: tuple[ToolCallPart, ...] = (first,)
        else:
            self._text.append(piece.text)
            parts = self._calls() if piece.finish_reason is not None else ()
        return dataclasses.replace(piece, text="", tokens=(), tool_calls=parts)

    def unread(self) -> str:
        """Return the text until now that is in no call: of a list of calls that was cut, or has not ended."""
        return "".join(self._text)

    def _calls(self) -> tuple[ToolCallPart, ...]:
        """Return the calls of the whole list; none where it was cut, or has half a surrogate pair."""
        try:
            calls = from_json("".join(self._text))
        except ValueError:
            return ()
        self._text = []
        return tuple(
            ToolCallPart(at, json.dumps(call["parameters"], ensure_ascii=False), call_id(), call["name"])
            for at, call in enumerate(calls)
        )


def _any_call(tools: Sequence[FunctionTool], single: bool) -> str:
    """Return the schema of a list of calls. Each function's own schema is a definition in it, by its place."""
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for at, tool in enumerate(tools):
        schema_text(_parameters(tool), _path(at))
        place = f"#/$defs/{at}"
        definitions[str(at)] = _moved(_parameters(tool), place)
        properties = {"name": {"type": "string", "enum": [tool.function.name]}, "parameters": {"$ref": place}}
        calls.append({"type": "object", "properties": properties, "required": ["name", "parameters"]})
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": definitions}
    if single:
        schema["maxItems"] = 1
    return schema_text(schema, "tools")


def _check(parameters: dict[str, Any], path: str) -> None:
    """Refuse parameters that no reader of calls can look a name up in. Raises BadRequest."""
    if is_nested_deeper(parameters, MAX_DEPTH):
        raise BadRequest(f"The schema is nested deeper than {MAX_DEPTH} levels.", param=path)
    properties = parameters.get("properties", {})
    if not isinstance(properties, dict) or not all(isinstance(each, dict | bool) for each in properties.values()):
        raise BadRequest("properties must be an object of schemas.", param=path)


def _moved(node: Any, place: str) -> Any:
    """Return a schema whose references, which lead into itself, lead to where it is now."""
    if isinstance(node, list):
        return [_moved(child, place) for child in node]
    if not isinstance(node, dict):
        return node
    moved = {name: _moved(child, place) for name, child in node.items()}
    reference = node.get("$ref")
    return moved | {"$ref": place + reference.removeprefix("#")} if isinstance(reference, str) else moved


def _parameters(tool: FunctionTool) -> dict[str, Any]:
    return tool.function.parameters or {"type": "object", "properties": {}}


def _path(at: int) -> str:
    return f"tools[{at}].function.parameters"
