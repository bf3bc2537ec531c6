"""Converts a request's response_format to a JSON schema for the engine."""

from serve.api.chat_completions.request import JsonFormat, SchemaFormat, TextFormat
from serve.engines.json_schema import schema_text

PARAM = "response_format.json_schema.schema"


def json_schema(wanted: TextFormat | JsonFormat | SchemaFormat | None) -> str | None:
    """Return the schema as JSON text; None for plain text. Raises BadRequest for an unsafe schema."""
    if isinstance(wanted, JsonFormat):
        return '{"type":"object"}'
    return schema_text(wanted.json_schema.schema_, PARAM) if isinstance(wanted, SchemaFormat) else None
