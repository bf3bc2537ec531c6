"""A client of a Diptych server: replies as JSON, errors as sentences for a person."""

import ipaddress
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx

Json = dict[str, Any]
CONNECT_S = 5.0
GRACE_S = 30.0  # beyond the request's own deadline, for merging and a slow network


class Failure(Exception):
    """An error with a sentence for the user. status: the command's exit status."""

    status = 1


class Misuse(Failure):
    """An error in the command's arguments."""

    status = 2


class NoServer(Failure):
    """An address where no server listens."""


class Server:
    """A connection to a server, for `with`. Its methods raise Failure whenever there is no answer.

    key: an API key. host: the Host header, where it is not the address's.
    """

    def __init__(self, url: str, key: str | None = None, host: str | None = None) -> None:
        self.url = url.rstrip("/")
        if key and not (key.isascii() and key.isprintable()):
            raise Misuse("--api-key: a key is made of printable ASCII characters.")
        self.headers = {"authorization": f"Bearer {key}"} if key else {}
        if host is not None:
            self.headers["host"] = host
        if not self.url.startswith(("http://", "https://")):
            raise Misuse(f"--server: {url!r} is not an address such as http://127.0.0.1:8000.")
        try:
            self.port = httpx.URL(self.url).port
            self.local = _is_loopback(httpx.URL(self.url).host)
            # Neither proxies of the environment nor certificates, which take 40 ms to read, have a part in http here.
            self.verify = not self.local or self.url.startswith("https://")
            self._http = httpx.Client(
                base_url=self.url,
                headers=self.headers,
                verify=self.verify,
                trust_env=not self.local,
                timeout=CONNECT_S,
            )
        except (httpx.InvalidURL, ValueError, ImportError) as error:  # ImportError: a SOCKS proxy without its package
            raise Failure(f"{url} cannot be reached: {error}") from None

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str) -> Json:
        """Return the JSON at a path."""
        with self._explained():
            return self._checked(self._http.get(path))

    def ready(self) -> Json:
        """Return {"status", "models": {name: state}, "details"}, also while no model can answer yet."""
        with self._explained():
            response = self._http.get("/ready")
            return self._json(response) if response.status_code == 503 else self._checked(response)

    def ask(self, task: str, picture: bytes | str, fields: Json, *, film: bool = False) -> Json:
        """Return the response with every model's reply and the merged one. picture: the bytes of a file, or a URL."""
        with self._explained():
            response = self._http.post(f"/v1/tasks/{task}", **_form(picture, fields, film))
            answer = self._checked(response)
        if answer.get("object") != "diptych.task":
            raise self._not_diptych(response)
        return answer

    def duel(self, task: str, picture: bytes | str, fields: Json, judge: str | None = None) -> Json:
        """Return two models' answers without names. judge: a model that votes as well."""
        params = {} if judge is None else {"judge": judge}
        with self._explained():
            form = _form(picture, fields, False)
            return self._checked(self._http.post(f"/v1/arena/duels/{task}", params=params, **form))

    def post(self, path: str, body: Json) -> Json:
        """Return the JSON of the response to a JSON body."""
        with self._explained():
            return self._checked(self._http.post(path, json=body))

    def events(
        self, task: str, picture: bytes | str, fields: Json, *, film: bool = False
    ) -> Iterator[tuple[str, Json]]:
        """Stream (`waiting`, `delta`, `reply` or `merged`, its JSON). Raises Failure if the stream ends early."""
        form = _form(picture, fields | {"stream": True}, film)
        with self._explained(), self._http.stream("POST", f"/v1/tasks/{task}", **form) as response:
            if response.status_code != 200:
                response.read()
                self._checked(response)
            for event, data in parse_events(response.iter_bytes()):
                if data == "[DONE]":
                    return
                body = json.loads(data)
                if event == "error":
                    raise Failure(sentence(body) or "The server failed and did not say why.")
                yield event, body
            raise Failure(f"{self.url} broke off before its answer was whole.")

    def _checked(self, response: httpx.Response) -> Json:
        body = self._json(response)
        if response.status_code == 200:
            return body
        message = sentence(body)
        if message is None:
            raise self._not_diptych(response)
        raise Failure((response.status_code == 503 and self._starting()) or message)

    def _starting(self) -> str | None:
        """Return a sentence with the models' states while some are still starting, else None."""
        status = self.ready()
        states, details = status.get("models", {}), status.get("details", {})
        if "starting" not in states.values():
            return None
        steps = {name: f" ({detail['step']})" for name, detail in details.items()}
        each = ", ".join(f"{name} {state}{steps.get(name, '')}" for name, state in states.items())
        return f"The server at {self.url} is still starting: {each}."

    def _json(self, response: httpx.Response) -> Json:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise self._not_diptych(response)
        return body

    def _not_diptych(self, response: httpx.Response) -> Failure:
        message = f"{self.url} answered {response.status_code}, but not as Diptych does."
        return Failure(f"{message} Is it another program, or still starting?")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn httpx's errors into a Failure that says what to do."""
        try:
            yield
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise NoServer(f"No Diptych answers at {self.url}. {self._advice()}") from None
        except httpx.TimeoutException:
            raise Failure(f"{self.url} took the question but has not answered in time.") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            why = str(error).rstrip(".") or type(error).__name__
            raise Failure(f"The connection to {self.url} broke: {why}.") from None
        except json.JSONDecodeError:
            raise Failure(f"{self.url} said something that is not JSON.") from None

    def _advice(self) -> str:
        if not self.local:
            return "Give another address with --server or DIPTYCH_URL."
        port = "" if self.port in (None, 8000) else f" --port {self.port}"
        return f"Start one with: diptych serve{port} (or make serve)"


def sentence(body: Json) -> str | None:
    """Return an OpenAI-shaped error as a sentence that names the parameter; None for any other body."""
    error = body.get("error")
    if not isinstance(error, dict) or not isinstance(error.get("message"), str):
        return None
    param = error.get("param")
    return f"{param}: {error['message']}" if param else str(error["message"])


def parse_events(chunks: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Parse server-sent events into (event, data). httpx's iter_lines also splits at U+2028, which JSON may hold."""
    event, data, rest = "message", [], b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            field, colon, value = line.rstrip(b"\r").decode("utf-8", "replace").partition(":")
            if field == "event":
                event = value.strip()
            elif field == "data":
                data.append(value.removeprefix(" "))
            elif not colon and data:  # an empty line ends the event; one that begins with a colon is a keep-alive
                yield event, "\n".join(data)
                event, data = "message", []


def _form(picture: bytes | str, fields: Json, film: bool) -> Json:
    """Return httpx's arguments for the request as a form, with the image's or video's bytes or its URL."""
    timeout = httpx.Timeout(fields.get("deadline_s", 60.0) + GRACE_S, connect=CONNECT_S)
    part = (None, picture) if isinstance(picture, str) else ("file", picture)
    return {"files": {"video" if film else "image": part}, "data": fields, "timeout": timeout}


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
