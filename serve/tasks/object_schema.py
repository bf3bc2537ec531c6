"""JSON schemas of the objects that models are to write: which are taken, and whether a value satisfies one."""

import functools
import json
import sys
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, ValidationError
from pydantic_core import from_json

from serve.engines.json_schema import schema_text
from serve.errors import BadRequest

PARAM = "schema"
MAX_TEXT = 20_000
"""Characters of a schema."""
MAX_DEPTH = 8
"""Objects and lists of a value inside each other, the outermost counted."""
MAX_PROPERTIES = 200
MAX_ALTERNATIVES = 8
"""Alternatives of a value, also by those of the objects around it, and MAX_ENUM_VALUES of their enums. Each may be
tried for each value of a list: all of them for 4,000 values take a second."""
MAX_ENUM_VALUES = 500
MAX_REFERENCES = 16
"""References to follow for a value, counted like the alternatives: 16 of them for 4,000 values take a second."""
MAX_VALUES = 4000
"""Values of an object, all those inside it counted."""
MAX_OBJECTS = 1000
MAX_STEPS = 200
"""Schemas on the way from the outermost one to an inner one, references among them."""
KINDS = Literal["object", "array", "string", "number", "integer", "boolean", "null"]
Number = StrictInt | StrictFloat
ALONE = ("ref", "anyOf")
"""Keywords beside which a grammar ignores all that holds a value; it also does where a bound has no type."""


class Schema(BaseModel):
    """The keywords that a grammar holds a reply to, and those that only describe."""

    model_config = ConfigDict(extra="forbid", strict=True)

    title: str | None = None
    description: str | None = None
    default: Any = None
    examples: list[Any] | None = None
    comment: str | None = Field(default=None, alias="$comment")
    dialect: str | None = Field(default=None, alias="$schema")
    defs: "dict[str, Schema]" = Field(default={}, alias="$defs")
    definitions: "dict[str, Schema]" = {}
    ref: str | None = Field(default=None, alias="$ref")
    anyOf: "list[Schema]" = Field(default=[], min_length=1)
    type: KINDS | list[KINDS] | None = None
    enum: list[Any] = Field(default=[], min_length=1)
    const: Any = None
    properties: "dict[str, Schema]" = {}
    required: list[str] = Field(default=[], max_length=MAX_PROPERTIES)
    additionalProperties: "StrictBool | Schema" = True
    items: "Schema | None" = None
    minItems: StrictInt | None = None
    maxItems: StrictInt | None = None
    minLength: StrictInt | None = None
    maxLength: StrictInt | None = None
    format: Literal["date", "email", "ipv4", "ipv6", "uuid"] | None = None
    minimum: Number | None = None
    maximum: Number | None = None
    exclusiveMinimum: Number | None = None
    exclusiveMaximum: Number | None = None

    @property
    def holding(self) -> set[str]:
        """Return the keywords given that hold a value, `type` aside."""
        describing = {"title", "description", "default", "examples", "comment", "dialect", "defs", "definitions"}
        return self.model_fields_set - describing - {"type"}

    def inner(self) -> "list[Schema]":
        """Return the schemas of its properties and items."""
        more = [self.additionalProperties] if isinstance(self.additionalProperties, Schema) else []
        return [*self.properties.values(), *([self.items] if self.items else []), *more]


def object_schema(given: Any) -> str:
    """Return a schema of objects as JSON text. given: the same, or the schema itself.

    Raises BadRequest naming `schema` for one that is too large or too deep, refers to itself, or has a keyword that
    guided decoding cannot hold a reply to.
    """
    if isinstance(given, str):
        if len(given) > MAX_TEXT:
            raise BadRequest(f"The schema is larger than {MAX_TEXT:,} characters.", param=PARAM)
        try:
            given = from_json(given, allow_inf_nan=False)
        except ValueError as error:
            raise BadRequest(f"The schema is not JSON: {error}.", param=PARAM, code="invalid_schema") from None
    if not isinstance(given, dict):
        raise BadRequest("The schema must be a JSON object.", param=PARAM, code="invalid_schema")
    text = schema_text(given, PARAM, MAX_TEXT)
    if text.count("{") > MAX_OBJECTS:
        raise BadRequest(f"The schema has more than {MAX_OBJECTS:,} objects.", param=PARAM)
    try:
        schema = Schema.model_validate(given)
    except ValidationError as error:
        raise _refusal(error) from None
    if schema.type != "object":
        raise _invalid('The outermost schema must have "type": "object".')
    _Walk(schema).check()
    return text


def _refusal(error: ValidationError) -> BadRequest:
    """Return the first fault, with its place."""
    faults = error.errors(include_url=False, include_input=False)
    fault = next((each for each in faults if each["type"] == "extra_forbidden"), faults[0])
    place = [str(part) for part in fault["loc"] if not str(part).startswith(("literal[", "list[", "Schema", "bool"))]
    if fault["type"] == "extra_forbidden":
        name, where = place[-1][:80], "/".join(place[:-1])[:200]
        at = f" at {where}" if where else ""
        return BadRequest(f"{name} is not supported in a schema{at}.", param=PARAM, code="unsupported_parameter")
    return _invalid(f"{'/'.join(place)[:200]}: {fault['msg']}.")


def _invalid(message: str) -> BadRequest:
    return BadRequest(message, param=PARAM, code="invalid_schema")


class _Walk:
    """Counts a schema's properties, and of each part the depth, and the most of each kind of step for one value."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.properties = 0
        self.sizes: dict[int, tuple[int, int, int, int]] = {}
        self.open: set[int] = set()

    def check(self) -> None:
        for part in (self.schema, *self.schema.defs.values(), *self.schema.definitions.values()):
            depth, alternatives, choices, references = self._size(part, 0)
            if depth > MAX_DEPTH:
                raise BadRequest(f"The object is nested deeper than {MAX_DEPTH} levels.", param=PARAM)
            if alternatives > MAX_ALTERNATIVES:
                raise BadRequest(f"A value has more than {MAX_ALTERNATIVES} alternatives in anyOf.", param=PARAM)
            if choices > MAX_ENUM_VALUES:
                raise BadRequest(f"A value has more than {MAX_ENUM_VALUES} choices in enum.", param=PARAM)
            if references > MAX_REFERENCES:
                raise BadRequest(f"A value has more than {MAX_REFERENCES} references to follow.", param=PARAM)
        if self.properties > MAX_PROPERTIES:
            raise BadRequest(f"The schema has more than {MAX_PROPERTIES} properties.", param=PARAM)

    def _size(self, part: Schema, steps: int) -> tuple[int, int, int, int]:
        if id(part) in self.open:
            raise _invalid("$ref leads round in a circle: recursion is not supported in a schema.")
        if id(part) in self.sizes:
            return self.sizes[id(part)]
        if steps > MAX_STEPS:
            raise BadRequest(f"More than {MAX_STEPS} schemas lie inside each other.", param=PARAM)
        self._check_keywords(part)
        self.properties += len(part.properties)
        self.open.add(id(part))
        same = [*part.anyOf, *([self._target(part.ref)] if part.ref is not None else [])]
        within = [self._size(inner, steps + 1) for inner in part.inner()]
        beside = [self._size(other, steps + 1) for other in same]
        self.open.remove(id(part))
        kinds = part.type if isinstance(part.type, list) else [part.type]
        own = 1 if "object" in kinds or "array" in kinds else 0
        depth = max([own, *(size[0] + 1 for size in within), *(size[0] for size in beside)])
        alternatives = sum(size[1] for size in beside) or max([1, *(size[1] for size in within)])
        choices = sum(size[2] for size in beside) or max([len(part.enum), *(size[2] for size in within)])
        references = sum(size[3] for size in beside) or max([0, *(size[3] for size in within)])
        sizes = (depth, alternatives, choices, references + (part.ref is not None))
        self.sizes[id(part)] = sizes
        return sizes

    @staticmethod
    def _check_keywords(part: Schema) -> None:
        """Raise BadRequest for keywords that a grammar ignores where they stand."""
        alone = next((name for name in ALONE if name in part.model_fields_set), None)
        if alone is not None and (part.holding != {alone} or part.type is not None):
            other = next(iter(sorted(part.holding - {alone})), "type")
            raise _invalid(f"{'$ref' if alone == 'ref' else alone} must stand alone: {other} beside it is not held to.")
        if alone is None and part.type is None and (bounds := part.holding - {"enum", "const"}):
            raise _invalid(f"{min(bounds)} needs a type beside it.")
        if "format" in part.holding and (lengths := part.holding & {"minLength", "maxLength"}):
            raise _invalid(f"{min(lengths)} beside format is not held to.")

    def _target(self, reference: str) -> Schema:
        root, _, name = reference.partition("/")
        where, _, name = name.partition("/")
        target: Schema | None = None
        # The validator also follows a path into a definition, and decodes %. Neither may lead past this walk.
        if root == "#" and where in ("$defs", "definitions") and not {"/", "%"} & set(name):
            parts = self.schema.defs if where == "$defs" else self.schema.definitions
            target = parts.get(name.replace("~1", "/").replace("~0", "~"))
        if reference == "#":
            return self.schema
        if target is None:
            raise _invalid(f"$ref {reference[:100]!r} is no part of $defs or definitions of the schema itself.")
        return target


def fault_of(value: Any, schema: str) -> str | None:
    """Return why a JSON value does not satisfy a schema of `object_schema`, as a sentence; None where it does."""
    depth, count = _size(value)
    if count > MAX_VALUES:
        return f"It has more than {MAX_VALUES:,} values."
    if depth > MAX_DEPTH:
        return f"It is nested deeper than {MAX_DEPTH} levels."
    error = next(_validator(schema).iter_errors(value), None)
    if error is None:
        return None
    place = "/".join(map(str, error.absolute_path))
    return f"{place or 'The object'}: {error.message[:200]}."


def _size(value: Any) -> tuple[int, int]:
    """Return how many objects and lists lie inside each other, and how many values there are.

    Raises ValueError for a number too large for a float.
    """
    deepest, count, left = 0, 0, [(value, 0)]
    while left:
        part, depth = left.pop()
        count += 1
        if isinstance(part, int | float) and not abs(part) <= sys.float_info.max:
            raise ValueError("a number is too large")
        if isinstance(part, dict | list):
            deepest = max(deepest, depth + 1)
            left += [(inner, depth + 1) for inner in (part.values() if isinstance(part, dict) else part)]
    return deepest, count


@functools.lru_cache(maxsize=32)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator  # takes 0.4 s, so only where an object is read

    return Draft202012Validator(json.loads(schema), format_checker=Draft202012Validator.FORMAT_CHECKER)
