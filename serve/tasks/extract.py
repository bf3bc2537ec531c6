"""Extraction: a JSON schema in, an object that satisfies it out."""

import json
from typing import Annotated

from pydantic import BeforeValidator, Field, WithJsonSchema

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.tasks.base import Instruction, Task, TextField
from serve.tasks.extracted import ExtractResult
from serve.tasks.json_reply import CUT_OBJECT, read_object
from serve.tasks.merging.field_vote import field_vote
from serve.tasks.object_schema import MAX_TEXT, fault_of, object_schema
from serve.tasks.request import Request

SchemaText = Annotated[
    str,
    BeforeValidator(object_schema),
    WithJsonSchema({"anyOf": [{"type": "object"}, {"type": "string", "maxLength": MAX_TEXT}]}),
]
EXAMPLE = {
    "type": "object",
    "properties": {
        "background": {"type": "string"},
        "shapes": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"shape": {"type": "string"}, "colour": {"type": "string"}},
                "required": ["shape", "colour"],
            },
        },
    },
    "required": ["background", "shapes"],
}


class ExtractRequest(Request):
    schema_: SchemaText = Field(
        alias="schema", description="A JSON schema of an object, itself or as text, which the replies satisfy."
    )


def _prompt(request: ExtractRequest) -> str:
    return (
        "Read from the image what this JSON schema asks for. Write one JSON object that satisfies the schema and "
        f"nothing else, without comments:\n{request.schema_}"
    )


def _schema(request: ExtractRequest) -> str:
    return request.schema_


def _read(generation: Generation, request: ExtractRequest) -> ExtractResult:
    """Return the object of a reply. Raises ParseError where there is none, or it does not satisfy the schema."""
    value = read_object(generation)
    try:
        fault = fault_of(value, request.schema_)
    except ValueError as error:  # a number too large
        raise ParseError(CUT_OBJECT if generation.cut else f"The reply is not JSON: {error}.") from None
    if fault is not None:
        raise ParseError(f"The reply does not satisfy the schema. {fault}")
    return ExtractResult.of(value, request.schema_)


def _as_text(result: ExtractResult) -> str:
    return json.dumps(result.data, ensure_ascii=False)


EXTRACT = Task(
    name="extract",
    title="Extraction",
    known_as=("data-extraction",),
    request=ExtractRequest,
    result=ExtractResult,
    methods={
        "field_vote": field_vote("field_vote"),
        "weighted_field_vote": field_vote("weighted_field_vote", by_confidence=True),
    },
    text_field=TextField("schema", "JSON schema of the object to write", "Which fields?", "json"),
    example={"schema": json.dumps(EXAMPLE)},
    instruction=Instruction(_prompt, _read, max_tokens=1024, schema=_schema),
    by_confidence=True,
    as_text=_as_text,
)
