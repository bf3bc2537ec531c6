"""Parses the body of a task request, JSON or multipart."""

import functools
import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest

from serve.api.body import check_values, in_thread, is_quick, parse_body
from serve.api.error_responses import validation_error
from serve.errors import BadRequest, TooLarge
from serve.tasks import TASKS
from serve.tasks.base import Request, split_phrases

MAX_FIELDS = 64
MAX_TEXT = 2**20
"""Largest form field that is not a file, in bytes; an image as a data URL may be this large."""
MAX_LIST = MAX_WEIGHTS = 16_384  # characters
MAX_TYPE = 512
OBJECTS = {"weights": '{"toy-llava": 2}', "chat_template_kwargs": '{"enable_thinking": false}'}
FILES = ("image", "video")
CHARSETS = {b"utf-8", b"utf8", b"us-ascii", b"ascii", b"iso-8859-1", b"latin-1", b"latin1"}
"""Charsets that a form may have. Other names are never looked up: Python caches each unknown one, and some known ones
(`undefined`, `idna`) raise errors of their own."""


async def read_task_request(http: HttpRequest, kind: type[Request]) -> Request:
    """Parse the body into a request of this kind. Raises BadRequest or TooLarge naming the field."""
    if http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        fields, size = await _form(http), http.state.lease.size
        return _from_form(kind, fields) if is_quick(size) else await in_thread(size, _from_form, kind, fields)
    return await parse_body(http, functools.partial(_from_json, kind))


class _InMemory(MultiPartParser):
    """Starlette's parser, with files in memory, where the budget counts them, and a limit on other fields."""

    spool_max_size = 0  # never to a disk

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and len(part.data) + end - start > MAX_TEXT:
            name = part.field_name[:200]
            message = f"{name} is longer than {MAX_TEXT // 1024} KB: only files may be."
            raise TooLarge(message, param=name, code="request_too_large")
        super().on_part_data(data, start, end)


async def _form(http: HttpRequest) -> dict[str, Any]:
    """Parse a form. Raises BadRequest or TooLarge naming the field, Overloaded where the budget has no room."""
    _check_type(http.headers["content-type"])
    parser = _InMemory(http.headers, http.stream(), max_files=len(FILES), max_fields=MAX_FIELDS, max_part_size=MAX_TEXT)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(error.message[:200], code="invalid_request") from None
    lease = http.state.lease
    size = lease.size
    try:
        await lease.grow(2 * size, http.state.body_until)  # each file is copied out of the form
        return await _fields(form)
    finally:
        await form.close()
        lease.shrink(size)


def _from_json(kind: type[Request], body: bytes) -> Request:
    try:
        return kind.model_validate_json(check_values(body), strict=True)
    except ValidationError as error:
        raise validation_error(error, parsed_or_none(body)) from None


def _from_form(kind: type[Request], fields: dict[str, Any]) -> Request:
    try:
        return kind.model_validate(fields)  # not strict: everything in a form is text
    except ValidationError as error:
        raise validation_error(error, fields) from None


def parsed_or_none(body: bytes) -> Any:
    """Return the body's JSON; None where it is not valid."""
    try:
        return from_json(body)
    except ValueError:
        return None


async def _fields(form: FormData) -> dict[str, Any]:
    """Return a form's fields as in a JSON body. Empty fields are left out."""
    fields: dict[str, Any] = {}
    lists = {"models", *(task.text_field.name for task in TASKS.values() if task.text_field and task.takes_phrases)}
    for name in dict.fromkeys(form.keys()):
        values = [value for value in form.getlist(name) if value != ""]
        if not values:
            continue
        if name not in lists and len(values) > 1:
            raise BadRequest(f"{name[:200]} is given more than once.", param=name[:200])
        first = values[0]
        if isinstance(first, UploadFile):
            fields[name] = await _upload(name, first)
        elif name in lists:
            texts = [value for value in values if isinstance(value, str)]
            if sum(map(len, texts)) > MAX_LIST:
                raise BadRequest(f"{name} is longer than {MAX_LIST:,} characters.", param=name)
            fields[name] = _parse_list(name, texts[0]) if len(texts) == 1 else texts
        elif name in OBJECTS:
            fields[name] = _parse_object(name, first)
        else:
            fields[name] = first
    return fields


def _check_type(content_type: str) -> None:
    """Raise BadRequest where a form's Content-Type is too long, or its charset is not in CHARSETS."""
    if len(content_type) > MAX_TYPE:
        raise BadRequest("Content-Type, its charset and boundary included, is too long.")
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8")
    if charset.strip().lower() not in CHARSETS:
        name = charset[:50].decode("latin-1")
        raise BadRequest(f"Content-Type: the charset {name!r} is not supported; send UTF-8.")


def _parse_list(name: str, text: str) -> Any:
    """Parse a list in one field: JSON, as in ["a cat", "a dog"], or phrases with separators."""
    if not text.lstrip().startswith("["):
        return split_phrases(text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip()[1:].lstrip().startswith('"'):
            raise BadRequest(f"{name} is not a whole JSON list of texts.", param=name) from None
    return split_phrases(text)  # a phrase may begin with a bracket


async def _upload(name: str, upload: UploadFile) -> bytes:
    if name not in FILES:
        raise BadRequest(f"{name[:200]} must be text: files go into {' or '.join(FILES)}.", param=name[:200])
    return await upload.read()


def _parse_object(name: str, text: str) -> Any:
    try:
        return json.loads(text[:MAX_WEIGHTS])
    except (ValueError, RecursionError):
        raise BadRequest(f"{name} must be JSON, such as {OBJECTS[name]}.", param=name) from None
