"""A running server, asked many things at once: with patience for a busy one, and an end to it for one that is gone."""

import asyncio
import datetime
import email.utils
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
TRIES = 6  # for a question at which the connection breaks again and again while others are answered
PASSING = ("model_starting", "engine_dead", "overloaded")  # a column that fails so may well be there in a minute
STUMBLES = ("engine_error", "internal_error")  # one that fails so is asked again, but not for long
STUMBLE_TRIES = 3
LONGEST_S = 30.0
PICTURE = (None, "image")  # the parameters of a refusal that is about one picture and not about the whole run


class Asker:
    """One server for an `async with`.

    concurrency: questions under way at once. patience_s: how long a server may say nothing at all, or a question be
    put off (429, 503, an engine that is being started again), before that is the answer.
    """

    def __init__(self, server: Server, *, concurrency: int = 32, patience_s: float = 120.0) -> None:
        self.url = server.url
        self.concurrency, self.patience_s = concurrency, patience_s
        self._answered: set[str] = set()
        self._given_up: set[str] = set()  # models that were waited for in vain: not once more for every picture
        self._heard = time.monotonic()
        try:
            self._http = httpx.AsyncClient(
                base_url=server.url,
                headers=server.headers,
                trust_env=not server.local,
                limits=httpx.Limits(max_connections=concurrency + 1, max_keepalive_connections=concurrency + 1),
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy without its package
            raise Failure(f"{server.url} cannot be reached: {error}") from None

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def ask(self, task: str, picture: bytes, fields: Json) -> Json:
        """{"image", "merged", "replies"}, or {"error"} as the server put it.

        Raises Failure where it would be the same for every picture: a server that is gone, a wrong parameter.
        """
        began, tries = time.monotonic(), 0
        while True:
            tries += 1
            try:
                response = await self._http.post(f"/v1/tasks/{task}", **sent(picture, {"priority": "batch", **fields}))
                body = _object(response)
            except httpx.TransportError as error:
                self._check_alive(error)
                if tries >= TRIES and self._heard > began:
                    return _error(f"The connection broke {tries} times: {_reason(error)}.", "connection_error")
                await asyncio.sleep(_backoff(tries))
                continue
            self._heard = time.monotonic()
            over = time.monotonic() - began > self.patience_s
            if response.status_code == 200:
                absent = _failing(body, PASSING)
                stumbled = tries < STUMBLE_TRIES and _failing(body, STUMBLES)
                if over or (absent <= self._given_up and not stumbled):
                    self._answered.add(task)
                    self._given_up = absent if over else self._given_up & absent
                    return self._line(body)
            elif response.status_code in (429, 500, 502, 503, 504):
                if over or _code(body) == ParseError.code or (response.status_code == 500 and tries > 1):
                    return {"error": _told(response, body)}
            else:
                return {"error": self._refusal(task, response, body)}
            await asyncio.sleep(_wait(response.headers, tries))

    def _check_alive(self, error: httpx.TransportError) -> None:
        silent = time.monotonic() - self._heard
        if silent > self.patience_s:
            raise NoServer(f"{self.url} has not answered for {silent:.0f} s ({_reason(error)}).")

    def _refusal(self, task: str, response: httpx.Response, body: Json) -> Json:
        told = _told(response, body)
        if (
            told.get("param") not in PICTURE and task not in self._answered
        ):  # not one was answered: it is not the picture
            raise Failure(sentence(body) or str(told["message"]))
        return told

    def _line(self, body: Json) -> Json:
        if body.get("object") != "diptych.task":
            raise Failure(f"{self.url} answered, but not as Diptych does. Is it another program?")
        return {name: body[name] for name in ("image", "merged", "replies")}


def wait_ready(server: Server, patience_s: float) -> None:
    """Until no model is still starting; a model that failed is not waited for. Raises Failure after `patience_s`."""
    with Console(stderr=True).status("") as shown:
        _wait_ready(server, patience_s, lambda words: shown.update(plain(words)))


def _wait_ready(server: Server, patience_s: float, tell: Callable[[str], None]) -> None:
    end = time.monotonic() + patience_s
    while True:
        standing = server.ready()
        states: Mapping[str, str] = standing.get("models", {})
        starting = [name for name, state in states.items() if state == "starting"]
        if not starting and not {"ready", "asleep"}.isdisjoint(states.values()):
            return
        if not starting:
            details = standing.get("details", {})
            why = " ".join(f"{name}: {detail.get('step')}" for name, detail in details.items())
            raise Failure(f"No model at {server.url} can answer. {why}".strip())
        if time.monotonic() > end:
            raise Failure(f"The server at {server.url} is still starting {', '.join(starting)}: try again later.")
        tell(f"waiting for {', '.join(starting)}")
        time.sleep(0.5)


def sent(picture: bytes, fields: Json) -> Json:
    """The request as a form, the picture's bytes as they are."""
    labels = fields.get("labels", [])
    # A lone text would be split at its commas, several are not; the same phrase twice is one phrase.
    form = fields | ({"labels": labels * 2} if len(labels) == 1 else {})
    patience = httpx.Timeout(fields.get("deadline_s", 60.0) + GRACE_S, connect=CONNECT_S, pool=None)
    return {"files": {"image": ("picture", picture)}, "data": form, "timeout": patience}


def _failing(body: Json, codes: Collection[str]) -> set[str]:
    """The models whose replies failed for one of these reasons."""
    replies = body.get("replies", [])
    return {reply["model"] for reply in replies if (reply.get("error") or {}).get("code") in codes}


def _told(response: httpx.Response, body: Json) -> Json:
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
    """What the server asks for, in seconds or as a date; else longer each time."""
    said = headers.get("retry-after", "")
    try:
        wanted = float(said)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(said)
            wanted = (date - datetime.datetime.now(datetime.UTC)).total_seconds()
        except (ValueError, TypeError):  # TypeError: a date without its zone
            return _backoff(tries)
    return min(max(wanted, 0.0), LONGEST_S) if wanted == wanted else _backoff(tries)


def _backoff(tries: int) -> float:
    """0.5, 1, 2, 4 ... seconds, half of it by chance, so that not all come back at once."""
    longest: float = min(LONGEST_S, 0.5 * 2 ** min(tries - 1, 10))
    return longest * random.uniform(0.5, 1.0)


def _reason(error: httpx.TransportError) -> str:
    return str(error).rstrip(".") or type(error).__name__
