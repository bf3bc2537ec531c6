"""A served app for tests: models whose engines say what they are told, and a real server on a loopback port."""

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import PIL.Image
import uvicorn
from fastapi import FastAPI

from serve.api import create_app
from serve.engines.base import Piece, Prompt, Token
from serve.errors import ModelError
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker


def picture(width: int = 64, height: int = 48, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (width, height), "red").save(out, format)
    return out.getvalue()


@dataclass
class Told:
    """An engine that says what it is told, word by word, and remembers what it was asked."""

    words: str | Callable[[Prompt], str] = "red"
    pause_s: float = 0.0
    breaks_after: int | None = None
    refuses_to_start: str | None = None
    prompts: list[Prompt] = field(default_factory=list)
    speaking: int = 0
    said: int = 0

    async def start(self) -> None:
        if self.refuses_to_start:
            raise ModelError(self.refuses_to_start)

    async def generate(self, prompt: Prompt) -> AsyncIterator[Piece]:
        self.prompts.append(prompt)
        self.speaking += 1
        words = self.words if isinstance(self.words, str) else self.words(prompt)
        pieces = words.split(" ")
        try:
            for at, word in enumerate(pieces):
                if at == self.breaks_after:
                    raise ModelError("The engine died.", code="engine_dead")
                await asyncio.sleep(self.pause_s)
                text = word if at == len(pieces) - 1 else word + " "
                top = tuple((f"{text}{rank}", -1.0 - rank) for rank in range(prompt.sampling.top_logprobs))
                self.said += 1
                yield Piece(text, (Token(text, -0.1, top),), None, 7, at + 1)
            yield Piece("", (), "stop", 7, len(pieces))
        finally:
            self.speaking -= 1

    async def check(self) -> None:
        pass

    async def stop(self) -> None:
        pass


def served(llava: Told | None = None, paligemma: Told | None = None, start: bool = True) -> FastAPI:
    """The two toy models behind an app. The table is read from the first one's place to the second's."""
    engines = {"toy-llava": llava or Told(), "toy-paligemma": paligemma or Told()}
    workers = [Worker(MODELS[name], engine) for name, engine in engines.items()]
    if start:
        for worker in workers:
            asyncio.run(worker.start())
    return create_app(Router(workers))


class Server(uvicorn.Server):
    """uvicorn in a thread."""

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        thread = threading.Thread(target=self.run)
        thread.start()
        try:
            while not self.started:
                if not thread.is_alive():
                    raise RuntimeError("the server did not start")
                threading.Event().wait(0.01)
            port = self.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}"
        finally:
            self.should_exit = True
            thread.join()


def listening(app: FastAPI) -> contextlib.AbstractContextManager[str]:
    """The app on a loopback port of its own: its address."""
    return Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off")).running()


def until(condition: Callable[[], bool], seconds: float = 2.0) -> bool:
    """Whether it becomes true in time."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return True
        threading.Event().wait(0.01)
    return condition()


def events(text: str) -> Sequence[tuple[str | None, str]]:
    """(event, data) of each frame in a stream's text."""
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines.get("event"), lines["data"]))
    return found
