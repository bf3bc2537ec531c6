"""Receives a request's body within its limits and the memory budget, and parses it: JSON, or a form of a task."""

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request as HttpRequest
from starlette.types import Message, Receive

from serve.api.error_responses import validation_error
from serve.errors import BadRequest, TooLarge, TooSlow
from serve.limits import LIMITS, Limits
from serve.media.budget import Lease
from serve.tasks import TASKS
from serve.tasks.base import split_phrases
from serve.tasks.request import Request

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)

FIRST_LEASE = 256 * 1024
"""Bytes leased for a body without a declared length. A body that grows larger gets a lease of the whole limit, so
that it waits only once."""
LARGE = 4 * 2**20
"""Bytes from which on a body is parsed in the thread for large bodies."""
PARSING_FACTOR = 3
"""Memory that a body takes while it is parsed, including its text and base64, as a multiple of its size."""
MAX_ESCAPES = 2_000_000
"""Largest number of backslashes. An image of 20 MB has 0.8 million, where line breaks and every slash are escaped."""
SMALL = 100_000
"""Bytes up to which a body is parsed on the event loop."""
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

# Parsing holds the GIL, so more threads would be no faster, and the event loop would wait for each of them. There are
# two so that large bodies do not delay small ones.
_THREADS = {large: ThreadPoolExecutor(1, "parse-large" if large else "parse") for large in (False, True)}


class LimitedBody:
    """An ASGI `receive` that raises TooLarge or TooSlow for a body that grows too large or arrives too slowly.

    Bytes are leased when the application asks for them, before they are read from the connection: a request refused
    for its key or its path leases nothing. Raises Overloaded where the budget has no room in time.
    """

    def __init__(self, receive: Receive, declared: int | None, limits: Limits, lease: Lease, until: float) -> None:
        """declared: Content-Length; None for a chunked body. until: when it must be complete, in loop time."""
        self._receive, self._declared, self._limits = receive, declared, limits
        self._lease, self._until = lease, until
        self._size, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        if self._size == 0 and self._declared:
            await self._lease.grow(self._declared, self._until, arriving=True)
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise TooSlow(f"The request did not arrive within {self._limits.body_timeout_s:g} s.") from None
        self._size += len(message.get("body", b""))
        if self._size > self._limits.max_body:
            raise too_large(self._limits)
        if self._size > self._lease.size:
            room = FIRST_LEASE if self._size <= FIRST_LEASE else self._limits.max_body
            await self._lease.grow(room, self._until, arriving=True)
        if not message.get("more_body", False):
            self._whole = True
            self._lease.shrink(self._size)
        return message


def too_large(limits: Limits) -> TooLarge:
    """Return the error for a body that is larger than the limit."""
    return TooLarge(f"The request is larger than {limits.max_body_mb:g} MB.", code="request_too_large")


async def parse_body(http: HttpRequest, parse: Callable[[bytes], T]) -> T:
    """Return the body parsed by `parse`, which runs in a thread where the body is large. The body is not kept.

    Raises what `parse` raises, and Overloaded where the budget has no room.
    """
    chunks = [chunk async for chunk in http.stream()]  # Request.body() would keep them as long as the request
    size, lease = sum(map(len, chunks)), http.state.lease
    if is_quick(size):
        return parse(b"".join(chunks))
    await lease.grow(PARSING_FACTOR * size, http.state.body_until)
    try:
        return await in_thread(size, _parse_chunks, parse, chunks)
    finally:
        lease.shrink(size)


def _parse_chunks(parse: Callable[[bytes], T], chunks: list[bytes]) -> T:
    """Join the chunks, free them, and return the parsed body."""
    body = b"".join(chunks)
    chunks.clear()
    return parse(body)


async def in_thread(size: int, work: Callable[..., T], *args: object) -> T:
    """Return `work(*args)`, run in the thread for bodies of `size` bytes, with the limits of the current request."""
    run = copy_context().run  # a thread has none of the request's context variables on its own
    return await asyncio.get_running_loop().run_in_executor(_THREADS[size > LARGE], run, work, *args)


def check_values(body: bytes) -> bytes:
    """Return the body unchanged. Raises BadRequest where it has too many values, or more than MAX_ESCAPES backslashes.

    28 MB of `[{},{},...` become gigabytes of Python objects, and pydantic writes a complaint about each, while it holds
    the GIL. Every value follows a comma or a bracket; base64 has neither. A string with 14 million escapes is parsed in
    200 ms, in which the event loop waits for the GIL as well.
    """
    most = LIMITS.get().max_values
    if len(body) > most and sum(map(body.count, (b",", b"[", b"{"))) > most:
        raise BadRequest(
            f"The body holds too many values: send at most {most:,} commas and opening brackets.", code="invalid_value"
        )
    if len(body) > MAX_ESCAPES and body.count(b"\\") > MAX_ESCAPES:
        raise BadRequest("The body holds too many escaped characters.", code="invalid_value")
    return body


def is_quick(size: int) -> bool:
    """Return whether a body of `size` bytes is parsed faster on the event loop than in a thread."""
    return size < SMALL


async def read_task_request(http: HttpRequest, kind: type[Request]) -> Request:
    """Parse the body into a request of this kind. Raises BadRequest or TooLarge naming the field."""
    if http.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        fields, size = await _form(http), http.state.lease.size
        return _from_form(kind, fields) if is_quick(size) else await in_thread(size, _from_form, kind, fields)
    return await read_json(http, kind)


async def read_json(http: HttpRequest, kind: type[M]) -> M:
    """Parse a JSON body into a model of this kind. Raises BadRequest or TooLarge naming the field."""
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
    """Parse a form. Raises as `parsed_form`."""
    async with parsed_form(http) as form:
        return await _fields(form)


@asynccontextmanager
async def parsed_form(http: HttpRequest) -> AsyncIterator[FormData]:
    """Parse a form for use in the block, in memory.

    Raises BadRequest or TooLarge naming the field, Overloaded where the budget has no room.
    """
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
        yield form
    finally:
        await form.close()
        lease.shrink(size)


def _from_json(kind: type[M], body: bytes) -> M:
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
