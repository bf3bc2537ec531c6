"""Many concurrent requests to a server, with retries while it is busy and an error once it is gone."""

import asyncio
import datetime
import email.utils
import json
import random
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import httpx
from rich.console import Console

from serve.client.board import plain
from serve.client.http_client import CONNECT_S, GRACE_S, Failure, NoServer, Server, sentence
from serve.errors import ParseError

Json = dict[str, Any]
TRIES = 6  # at a request whose connection breaks every time while others are answered
TEMPORARY = ("model_starting", "engine_dead", "overloaded")  # codes of failures that may be over within a minute
RETRIED = ("engine_error", "internal_error")  # codes of failures that are retried a few times
RETRIED_TRIES = 3
LONGEST_WAIT_S = 30.0
PICTURE = (None, "image")  # `param` of a refusal of one image, which does not end the run


class Asker:
    """A connection to a server, for `async with`.

    concurrency: the most requests at once. patience_s: for how long a server may be silent, or a request be retried
    (429, 503, an engine that is restarting), before that counts as its answer.
    """

    def __init__(self, server: Server, *, concurrency: int = 32, patience_s: float = 120.0) -> None:
        self.url = server.url
        self.concurrency, self.patience_s = concurrency, patience_s
        self._answered: set[str] = set()
        self._given_up: set[str] = set()  # models that stayed away for patience_s: later requests do not wait for them
        self._last_response = time.monotonic()
        try:
            self._http = httpx.AsyncClient(
                base_url=server.url,
                headers=server.headers,
                verify=server.verify,
                trust_env=not server.local,
                limits=httpx.Limits(max_connections=concurrency + 1, max_keepalive_connections=concurrency + 1),
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy without its package
            raise Failure(f"{server.url} cannot be reached: {error}") from None

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, task: str, picture: bytes | str, fields: Json, *, unreadable: bool = False) -> Json:
        """Return {"image", "merged", "replies"}, or {"error"} as in the server's response. Retries while it is busy.

        unreadable: with {"error"} return the "replies" that cannot be read.
        Raises Failure for an error that every image would meet: a server that is gone, a wrong parameter.
        """
        began, tries = time.monotonic(), 0
        while True:
            tries += 1
            try:
                response = await self._http.post(f"/v1/tasks/{task}", **form(picture, {"priority": "batch", **fields}))
                body = _object(response)
            except httpx.TransportError as error:
                self._check_alive(error)
                if tries >= TRIES and self._last_response > began:
                    return _error(f"The connection broke {tries} times: {_reason(error)}.", "connection_error")
                await asyncio.sleep(_backoff(tries))
                continue
            self._last_response = time.monotonic()
            over = time.monotonic() - began > self.patience_s
            if response.status_code == 200:
                absent = _failed_models(body, TEMPORARY)
                retry = tries < RETRIED_TRIES and _failed_models(body, RETRIED)
                if over or (absent <= self._given_up and not retry):
                    self._answered.add(task)
                    self._given_up = absent if over else self._given_up & absent
                    return self._line(body)
            elif response.status_code in (429, 500, 502, 503, 504):
                if over or _code(body) == ParseError.code or (response.status_code == 500 and tries > 1):
                    replies = {"replies": body["replies"]} if unreadable and "replies" in body else {}
                    return {"error": _error_of(response, body), **replies}
            else:
                return {"error": self._refusal(task, response, body)}
            await asyncio.sleep(_wait(response.headers, tries))

    def _check_alive(self, error: httpx.TransportError) -> None:
        silent = time.monotonic() - self._last_response
        if silent > self.patience_s:
            raise NoServer(f"{self.url} has not answered for {silent:.0f} s ({_reason(error)}).")

    def _refusal(self, task: str, response: httpx.Response, body: Json) -> Json:
        error = _error_of(response, body)
        # As long as no request was answered, the fault is not this image's; a refused key never is.
        if response.status_code in (401, 403) or (error.get("param") not in PICTURE and task not in self._answered):
            raise Failure(sentence(body) or str(error["message"]))
        return error

    def _line(self, body: Json) -> Json:
        if body.get("object") != "diptych.task":
            raise Failure(f"{self.url} answered, but not as Diptych does. Is it another program?")
        return {name: body[name] for name in ("image", "merged", "replies")}


def wait_ready(server: Server, patience_s: float) -> None:
    """Wait until no model is starting; models that failed do not count. Raises Failure after `patience_s`."""
    with Console(stderr=True).status("") as status:
        _wait_ready(server, patience_s, lambda text: status.update(plain(text)))


def _wait_ready(server: Server, patience_s: float, show: Callable[[str], None]) -> None:
    end = time.monotonic() + patience_s
    while True:
        status = server.ready()
        states: Mapping[str, str] = status.get("models", {})
        starting = [name for name, state in states.items() if state == "starting"]
        if not starting and not {"ready", "asleep"}.isdisjoint(states.values()):
            return
        if not starting:
            details = status.get("details", {})
            why = " ".join(f"{name}: {detail.get('step')}" for name, detail in details.items())
            raise Failure(f"No model at {server.url} can answer. {why}".strip())
        if time.monotonic() > end:
            raise Failure(f"The server at {server.url} is still starting {', '.join(starting)}: try again later.")
        show(f"waiting for {', '.join(starting)}")
        time.sleep(0.5)


def form(picture: bytes | str, fields: Json) -> Json:
    """Return httpx's arguments for the request as a form, with the image's bytes or its URL."""
    # The server splits a single phrase at its commas, but neither several ones nor a JSON list.
    single = {name: value for name, value in fields.items() if isinstance(value, list) and len(value) == 1}
    data = fields | {name: json.dumps(value, ensure_ascii=False) for name, value in single.items()}
    timeout = httpx.Timeout(fields.get("deadline_s", 60.0) + GRACE_S, connect=CONNECT_S, pool=None)
    return {
        "files": {"image": (None, picture) if isinstance(picture, str) else ("picture", picture)},
        "data": data,
        "timeout": timeout,
    }


def _failed_models(body: Json, codes: Collection[str]) -> set[str]:
    """Return the models whose replies have an error with one of these codes."""
    replies = body.get("replies", [])
    return {reply["model"] for reply in replies if (reply.get("error") or {}).get("code") in codes}


def _error_of(response: httpx.Response, body: Json) -> Json:
    error = body.get("error")
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return {name: error.get(name) for name in ("message", "type", "param", "code")}
    return {"message": f"The server answered {response.status_code}.", "code": f"http_{response.status_code}"}


def _error(message: str, code: str) -> Json:
    return {"error": {"message": message, "code": code}}


def _code(body: Json) -> object:
    error = body.get("error")
    return error.get("code") if isinstance(error, dict) else None


def _object(response: httpx.Response) -> Json:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _wait(headers: Mapping[str, str], tries: int) -> float:
    """Return the seconds to wait: Retry-After, in seconds or as a date, or else an exponential backoff."""
    retry_after = headers.get("retry-after", "")
    try:
        wanted = float(retry_after)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(retry_after)
            wanted = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (ValueError, TypeError):  # TypeError: a date without its zone
            return _backoff(tries)
    return min(max(wanted, 0.0), LONGEST_WAIT_S) if wanted == wanted else _backoff(tries)


def _backoff(tries: int) -> float:
    """Return 0.5, 1, 2, 4 ... seconds, half of it random, so that not all requests come back at once."""
    longest: float = min(LONGEST_WAIT_S, 0.5 * 2 ** min(tries - 1, 10))
    return longest * random.uniform(0.5, 1.0)


def _reason(error: httpx.TransportError) -> str:
    return str(error).rstrip(".") or type(error).__name__
