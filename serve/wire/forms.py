"""A task's body, JSON or multipart, as its request."""

import asyncio
import json
import re
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request as HttpRequest

from serve.errors import BadRequest
from serve.tasks.base import Request
from serve.wire.json_body import checked, is_quick
from serve.wire.limits import MAX_BODY
from serve.wire.refusals import refusal

MAX_FIELDS = 64
MAX_WEIGHTS = 16_384  # characters
SEPARATORS = re.compile(r"[;,]")
LISTS = ("labels", "models")
FILES = ("image", "video")
CHARSETS = {b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1", b"latin1"}
"""In which a form's texts may be written. A name from outside is never looked up: Python remembers each one that it
does not know, and some that it knows (`undefined`, `idna`) raise errors of their own."""


async def read(http: HttpRequest, kind: type[Request]) -> Request:
    """The body as a task's request. Raises BadRequest or TooLarge naming the field."""
    if http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        _check_charset(http.headers["content-type"])
        async with http.form(max_files=len(FILES), max_fields=MAX_FIELDS, max_part_size=MAX_BODY) as form:
            fields = await _fields(form)
        return await asyncio.to_thread(_from_form, kind, fields)
    body = await http.body()
    return _from_json(kind, body) if is_quick(body) else await asyncio.to_thread(_from_json, kind, body)


def phrases(text: str) -> list[str]:
    """ "a cat; a dog" or "a cat, a dog" -> ["a cat", "a dog"]."""
    return [phrase.strip() for phrase in SEPARATORS.split(text) if phrase.strip()]


def _from_json(kind: type[Request], body: bytes) -> Request:
    try:
        return kind.model_validate_json(checked(body), strict=True)
    except ValidationError as error:
        raise refusal(error, _json(body)) from None


def _from_form(kind: type[Request], fields: dict[str, Any]) -> Request:
    try:
        return kind.model_validate(fields)  # not strict: everything in a form is text
    except ValidationError as error:
        raise refusal(error, fields) from None


def _json(body: bytes) -> Any:
    try:
        return from_json(body)
    except ValueError:
        return None


async def _fields(form: FormData) -> dict[str, Any]:
    """A form's fields as JSON would have them. An empty field is one that was not filled in."""
    fields: dict[str, Any] = {}
    for name in dict.fromkeys(form.keys()):
        values = [value for value in form.getlist(name) if value != ""]
        if not values:
            continue
        if name not in LISTS and len(values) > 1:
            raise BadRequest(f"{name[:200]} is given more than once.", param=name[:200])
        first = values[0]
        if isinstance(first, UploadFile):
            fields[name] = await _upload(name, first)
        elif name in LISTS:
            texts = [value for value in values if isinstance(value, str)]
            fields[name] = _listed(name, texts[0]) if len(texts) == 1 else texts
        elif name == "weights":
            fields[name] = _weights(first)
        else:
            fields[name] = first
    return fields


def _check_charset(content_type: str) -> None:
    """Raise BadRequest where a form's Content-Type names a charset that cannot be read."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8")
    if charset.strip().lower() not in CHARSETS:
        name = charset[:50].decode("latin-1")
        raise BadRequest(f"Content-Type: the charset {name!r} is not supported; send UTF-8.")


def _listed(name: str, text: str) -> Any:
    """A list in one field: as JSON, as in ["a cat", "a dog"], or as phrases between separators."""
    if not text.lstrip().startswith("["):
        return phrases(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip()[1:].lstrip().startswith('"'):
            raise BadRequest(f"{name} is not a whole JSON list of texts.", param=name) from None
    return phrases(text)  # a phrase may begin with a bracket


async def _upload(name: str, upload: UploadFile) -> bytes:
    if name not in FILES:
        raise BadRequest(f"{name[:200]} must be text: files go into {' or '.join(FILES)}.", param=name[:200])
    return await upload.read()


def _weights(text: str) -> Any:
    try:
        return json.loads(text[:MAX_WEIGHTS])
    except (ValueError, RecursionError):
        raise BadRequest('weights must be JSON, such as {"toy-llava": 2}.', param="weights") from None
