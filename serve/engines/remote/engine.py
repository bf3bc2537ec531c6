"""Implements Engine for a model on another server that speaks OpenAI's API."""

import asyncio
import contextlib
import email.utils
import functools
import logging
import math
import os
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from typing import Any

import httpcore
import msgspec

from serve.engines.base import Piece, Prompt
from serve.engines.remote.chat_request import DEFAULT_FIELDS, Body, ChatField, chat_body
from serve.engines.remote.dial import NamedHost, UnprotectedKey
from serve.engines.remote.event_stream import EventReader
from serve.engines.remote.image_files import DEFAULT_IMAGE_TYPES, ImageFiles, ImageType
from serve.errors import BadRequest, ModelError, Overloaded, ServeError
from serve.media.fetch.address import ParsedUrl
from serve.media.fetch.dial import Resolve, resolve

CONNECT_S = 5.0
"""Seconds to resolve the host's name and connect, and again for the TLS handshake."""
CHECK_S = 10.0
"""Seconds for an answer to `check`."""
SILENCE_S = 120.0
"""Default of the seconds that the server may be silent: some models think for as long before their first word."""
TAIL_S = 2.0
"""Seconds to wait for the token counts, once the reply's end was announced."""
CLOSING_S = 0.1
"""Seconds to wait for the response's end, once its stream's was announced: then the connection can be used again."""
IDLE_S = 20.0
"""Seconds that an unused connection is kept open."""
STALE_S = 1.0
"""Seconds within which a kept connection that the server has closed meanwhile is noticed."""
MAX_ERROR_BYTES = 65_536
MAX_WAIT_DIGITS = 9
UNREACHABLE, FAILED, KEY_REFUSED = "remote_unreachable", "remote_failed", "remote_key"
DEAD = "engine_dead"
PROMPTS = ("input_tokens", "input_text")
"""What vLLM's server names where a prompt is too long."""
LENGTHS: tuple[ChatField, ...] = ("max_tokens", "max_completion_tokens")
NOT_TAKEN = ("unsupported_parameter", "unknown_parameter", None)
"""Codes of an error about a parameter that no value of it would mend; any other is about its value."""
_KEY = re.compile(r"[\x21-\x7e]+")
_BROKEN = (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError)
logging.getLogger("httpcore").setLevel(logging.WARNING)  # at DEBUG it logs headers' names and URLs


class RemoteBusy(Overloaded):
    """The server refused a request for now, and gave a time after which to try again: `wait_s` seconds."""

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message, retry_after_s=math.ceil(wait_s))
        self.wait_s = wait_s


class _Error(msgspec.Struct):
    param: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Error


class RemoteEngine:
    """An engine whose model runs on another server.

    name: of the model here, for errors. model: its name at the server. url: the API's base, as https://host/v1.
    key_env: the environment variable that holds the key, which is read for each request and kept nowhere. fields:
    the request fields that the server takes. image_types: the types of image files that it takes. silence_s: seconds
    that it may send nothing. files: shared by all engines of a gateway. resolve, tls: replaced in tests.
    """

    def __init__(
        self,
        name: str,
        model: str,
        url: ParsedUrl,
        files: ImageFiles,
        *,
        key_env: str | None = None,
        fields: Collection[ChatField] = DEFAULT_FIELDS,
        image_types: Collection[ImageType] = DEFAULT_IMAGE_TYPES,
        silence_s: float = SILENCE_S,
        resolve: Resolve = resolve,
        tls: Callable[[], ssl.SSLContext] = httpcore.default_ssl_context,
    ) -> None:
        self.name, self.model, self.url, self.files = name, model, url, files
        self.key_env, self.fields, self.image_types, self.silence_s = key_env, fields, image_types, silence_s
        self._network = NamedHost(private=url.scheme == "http" and key_env is not None, resolve=resolve)
        self._tls = functools.cache(tls)  # loading the certificate authorities takes 50 ms
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def start(self) -> None:
        """Raise ModelError where the key is missing."""
        self._authorization()

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate a reply. prompt.text: OpenAI's `messages` as JSON, with IMAGE_PART where the image goes.

        Raises BadRequest for what the server cannot do, RemoteBusy where it gives a time to try again, Overloaded
        where it only refuses, and ModelError for every other failure, with no word of the server's in it.
        """
        return self._generate(prompt)

    async def check(self) -> None:
        """Ask for the list of models. Raises ModelError where the server cannot be reached, fails or refuses the key.

        Any other answer will do: not every server has such a list.
        """
        try:
            async with asyncio.timeout(CHECK_S), self._response("GET", "/models", None) as response:
                await self._read_error(response)
                status = response.status
        except TimeoutError:
            raise self._error(UNREACHABLE, f"did not answer within {CHECK_S:g} s") from None
        if status in (401, 403) or status >= 500:
            raise self._refusal(status, None, None)

    async def stop(self) -> None:
        """Close all connections."""
        if self._pool is not None:
            pool, self._pool = self._pool, None
            await pool.aclose()

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        async with contextlib.AsyncExitStack() as stack:
            file = ("", b"")
            if prompt.image is not None:
                file = await stack.enter_async_context(self.files.file(prompt.image, self.image_types))
            body = chat_body(self.name, self.model, self.fields, prompt, file)
            response = await stack.enter_async_context(self._response("POST", "/chat/completions", body))
            if response.status != 200:
                raise self._refusal(response.status, response, await self._read_error(response))
            headers = _headers(response)
            if not headers.get(b"content-type", "").lower().startswith("text/event-stream"):
                raise self._error(FAILED, "answered with something that is no stream of events")
            if headers.get(b"content-encoding", "identity").lower() != "identity":
                raise self._error(FAILED, "compressed its reply, unasked")
            reader = EventReader(self.name)
            chunks = aiter(response.aiter_stream())
            while (data := await self._next(chunks, reader)) is not None:
                piece = reader.feed(data)
                if piece is not None:
                    yield piece
            yield reader.end()

    async def _next(self, chunks: AsyncIterator[bytes], reader: EventReader) -> bytes | None:
        """Return the stream's next bytes; None at its end. Raises ModelError where the reply is not whole by then."""
        wait_s = CLOSING_S if reader.done else TAIL_S if reader.finished else self.silence_s
        try:
            async with asyncio.timeout(wait_s):
                return await anext(chunks)
        except StopAsyncIteration:
            failure = self._died()
        except _BROKEN:
            failure = self._died()
        except TimeoutError:
            failure = self._silent()
        if reader.finished:
            return None
        raise failure from None

    @contextlib.asynccontextmanager
    async def _response(self, method: str, path: str, body: Body | None) -> AsyncIterator[httpcore.Response]:
        """Send a request; the block may read the response. Raises ModelError where none comes."""
        pool = await self._connections()
        headers: list[tuple[bytes, bytes]] = [
            (b"Host", self.url.authority().encode()),
            (b"User-Agent", b"Diptych"),
            (b"Accept", b"text/event-stream, application/json"),
            (b"Accept-Encoding", b"identity"),
            *self._authorization(),
        ]
        if body is not None:
            headers += [(b"Content-Type", b"application/json"), (b"Content-Length", str(body.size).encode())]
        target = self.url.target.rstrip("/") + path
        url = httpcore.URL(scheme=self.url.scheme, host=self.url.host, port=self.url.port, target=target)
        response = await self._open(pool, method, url, headers, body)
        try:
            yield response
        finally:
            await response.aclose()

    async def _open(
        self,
        pool: httpcore.AsyncConnectionPool,
        method: str,
        url: httpcore.URL,
        headers: list[tuple[bytes, bytes]],
        body: Body | None,
    ) -> httpcore.Response:
        """Return the response once its head is there.

        A kept connection may be closed by the server just as it is used again: such a request is sent once more.
        """
        stale_until = time.monotonic() + STALE_S
        for last in (False, True):
            fresh = False

            async def trace(event: str, info: dict[str, Any]) -> None:
                nonlocal fresh
                fresh = fresh or event == "connection.connect_tcp.started"

            content = None if body is None else body.parts()
            extensions = {"timeout": {"connect": CONNECT_S, "write": self.silence_s}, "trace": trace}
            request = httpcore.Request(method, url, headers=headers, content=content, extensions=extensions)
            try:
                async with asyncio.timeout(self.silence_s):
                    return await pool.handle_async_request(request)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                certificate = isinstance(error.__context__, ssl.SSLError) or isinstance(error.__cause__, ssl.SSLError)
                why = "has no certificate that is trusted here" if certificate else "cannot be reached"
                raise self._error(UNREACHABLE, why) from None
            except UnprotectedKey:
                where = "is at a public address, where a key is sent over https only"
                raise self._error(UNREACHABLE, where) from None
            except (TimeoutError, httpcore.TimeoutException):
                raise self._silent() from None
            except _BROKEN:
                if fresh or last or time.monotonic() > stale_until:
                    raise self._died() from None
        raise AssertionError("the last try returns or raises")

    async def _connections(self) -> httpcore.AsyncConnectionPool:
        if self._pool is None:
            tls = await asyncio.to_thread(self._tls) if self.url.scheme == "https" else None
            if self._pool is None:
                self._pool = httpcore.AsyncConnectionPool(
                    tls, max_connections=None, keepalive_expiry=IDLE_S, network_backend=self._network
                )
        return self._pool

    async def _read_error(self, response: httpcore.Response) -> _Error | None:
        """Return the machine-readable part of an error's body, where there is one."""
        data = b""
        with contextlib.suppress(TimeoutError, *_BROKEN):
            async with asyncio.timeout(CHECK_S):
                async for chunk in response.aiter_stream():
                    data += chunk
                    if len(data) > MAX_ERROR_BYTES:
                        return None
        try:
            return msgspec.json.decode(data, type=_ErrorBody).error
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None

    def _authorization(self) -> list[tuple[bytes, bytes]]:
        """Return the header with the key. Raises ModelError where it is missing or cannot be sent."""
        if self.key_env is None:
            return []
        key = os.environ.get(self.key_env, "").strip()
        if not _KEY.fullmatch(key):
            why = "has letters that no key has" if key else "is not set in the gateway's process"
            message = f"{self.name} cannot be asked: the environment variable {self.key_env} {why}."
            raise ModelError(message, code=KEY_REFUSED)
        return [(b"Authorization", b"Bearer " + key.encode())]

    def _refusal(self, status: int, response: httpcore.Response | None, error: _Error | None) -> ServeError:
        """Return the error for a response that is no reply. Of its text only names that we sent are used."""
        if status in (429, 503) and response is not None:
            wait_s = _retry_after(_headers(response))
            message = f"{self.name}'s server takes no more requests for now ({status})."
            if wait_s is not None:
                return RemoteBusy(message, wait_s)
            if status == 429:
                return Overloaded(message)
        if status in (401, 403):
            return self._error(
                KEY_REFUSED, f"refuses {'its key' if self.key_env else 'a request without a key'}", status
            )
        if status == 404:
            return self._error("remote_not_found", "does not know its model, or this path", status)
        if 300 <= status < 400:
            return self._error(FAILED, "redirects to another place, which is not followed", status)
        if status >= 500 or status < 400 or status == 408:
            return self._error(FAILED, "failed", status)
        if error is not None and (error.code == "context_length_exceeded" or error.param in PROMPTS):
            message = f"The request is longer than {self.name}'s context."
            return BadRequest(message, param="question", code="context_length_exceeded")
        if error is not None and error.param in LENGTHS and error.code not in NOT_TAKEN:
            why = (
                f"refuses a reply as long as {error.param} allows, which may be longer than its context: set a smaller"
            )
            return self._error("remote_length", f"{why} `max_tokens`", status)
        if error is not None and error.param in self.fields:
            return self._error("remote_field", f"does not take {error.param}: change its `fields`", status)
        if status == 413:
            return BadRequest(f"The image is larger than {self.name}'s server takes.", param="image", code="too_large")
        return BadRequest(f"{self.name}'s server refuses this request ({status}).", code="remote_refused")

    def _error(self, code: str, what: str, status: int | None = None) -> ModelError:
        return ModelError(f"{self.name}'s server {what}{f' ({status})' if status else ''}.", code=code)

    def _died(self) -> ModelError:
        return self._error(DEAD, "closed the connection in the middle of its reply")

    def _silent(self) -> ModelError:
        return self._error(FAILED, f"sent nothing for {self.silence_s:g} s")


def _headers(response: httpcore.Response) -> dict[bytes, str]:
    return {name.lower(): value.decode("latin-1") for name, value in response.headers}


def _retry_after(headers: dict[bytes, str]) -> float | None:
    """Return the seconds of Retry-After, which may be a date, or of OpenAI's retry-after-ms; None without either."""
    milliseconds = headers.get(b"retry-after-ms", "").strip()
    if re.fullmatch(rf"\d{{1,{MAX_WAIT_DIGITS}}}", milliseconds, re.ASCII):
        return int(milliseconds) / 1000
    given = headers.get(b"retry-after", "").strip()
    if re.fullmatch(rf"\d{{1,{MAX_WAIT_DIGITS}}}(\.\d+)?", given, re.ASCII):
        return float(given)
    with contextlib.suppress(ValueError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(given[:100]).timestamp() - time.time())
    return None
