"""A model and its engine: ask -> generate -> parse. The only file that knows both a skill and an engine."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serve import tracing
from serve.engines.base import Engine, FinishReason, Piece, Prompt, Spoken, State, Token
from serve.errors import ModelError, ParseError
from serve.models.base import Model
from serve.tasks.base import Delta, Reply, ReplyError, Request, Usage


@dataclass(frozen=True)
class Status:
    """Where a model stands. step: what it is doing or why it failed, in words; since_s: for how many seconds. asked:
    requests that it was given here and has not answered, those that wait among them."""

    model: str
    state: State
    step: str
    since_s: float
    asked: int = 0


@dataclass
class Stream:
    """One prompt's words as they arrive, and what they amounted to."""

    pieces: asyncio.Queue[Piece | Exception | None]
    words: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    last: Piece = Piece("")


class Worker:
    """Answers tasks (`answer`) and plain conversations (`speak`) for one model."""

    def __init__(self, model: Model, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.model = model
        self.engine = engine
        self.clock = clock
        self._state: State = "starting"
        self._step = "waiting to start"
        self._since = clock()
        self._asked = 0

    @property
    def name(self) -> str:
        return self.model.name

    async def start(self) -> None:
        """Load the engine. Never raises ModelError: a model that cannot start says so in its status and replies."""
        self.mark("starting", "loading")
        try:
            await self.engine.start()
        except ModelError as error:
            self.mark("failed", error.message)
        else:
            self.mark("ready", "ready")

    def mark(self, state: State, step: str) -> None:
        """Set the status; `since` counts from the last change of state."""
        if state != self._state:
            self._since = self.clock()
        self._state, self._step = state, step

    async def status(self) -> Status:
        return Status(self.name, self._state, self._step, self.clock() - self._since, self._asked)

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """The model's words as deltas, then one Reply. Raises ModelError where there is no reply to be had."""
        self._require_ready()
        tracing.here().set({"gen_ai.request.model": self.name, "diptych.task": task})
        with self._counted():
            skill = self.model.skills[task]
            prompts = await asyncio.to_thread(skill.ask, request) if skill.slow else skill.ask(request)
            streams = [Stream(asyncio.Queue()) for _ in prompts]
            if request.priority == "batch":
                prompts = [replace(prompt, batch=True) for prompt in prompts]
            tasks = [asyncio.create_task(self._fill(s, p)) for s, p in zip(streams, prompts, strict=True)]
            try:
                for at, stream in enumerate(streams):  # all speak at once; their words are passed on in order
                    if at:
                        yield Delta(self.name, "\n")
                    while (item := await stream.pieces.get()) is not None:
                        if isinstance(item, Exception):
                            raise item
                        if item.text:
                            yield Delta(self.name, item.text)
                if skill.slow:
                    yield await asyncio.to_thread(self._reply, task, request, streams)
                else:
                    yield self._reply(task, request, streams)
            finally:  # the caller left, or one prompt failed: the engine must not go on for nobody
                for job in tasks:
                    job.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """A plain conversation: the engine's pieces as they are, log-probabilities included. A film is thinned out to
        as many frames as the model takes."""
        self._require_ready()
        tracing.here().set({"gen_ai.request.model": self.name})
        if prompt.video is not None:
            prompt = replace(prompt, video=prompt.video.sample(self.model.frames))
        with self._counted():
            async with contextlib.aclosing(self.engine.generate(prompt)) as pieces:
                async for piece in pieces:
                    yield piece

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    def _require_ready(self) -> None:
        if self._state == "starting":
            raise ModelError(f"{self.name} is still starting: {self._step}.", code="model_starting")
        if self._state == "failed":
            raise ModelError(f"{self.name} cannot answer: {self._step}", code="model_failed")

    async def _fill(self, stream: Stream, prompt: Prompt) -> None:
        try:
            async with contextlib.aclosing(self.engine.generate(prompt)) as pieces:
                async for piece in pieces:
                    stream.words.append(piece.text)
                    stream.tokens.extend(piece.tokens)
                    stream.last = piece
                    stream.pieces.put_nowait(piece)
            stream.pieces.put_nowait(None)
        except Exception as error:  # carried to `answer`, which raises it
            stream.pieces.put_nowait(error)

    def _reply(self, task: str, request: Request, streams: list[Stream]) -> Reply:
        spoken = [Spoken("".join(s.words), tuple(s.tokens), s.last.finish_reason == "length") for s in streams]
        prompt_tokens = sum(s.last.prompt_tokens for s in streams)
        completion_tokens = sum(s.last.completion_tokens for s in streams)
        reply = Reply(
            model=self.name,
            status="ok",
            text="\n".join(s.text for s in spoken),
            confidence=Spoken("".join(s.text for s in spoken), tuple(t for s in spoken for t in s.tokens)).confidence(),
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
                total_tokens=prompt_tokens + completion_tokens,
            ),
            finish_reason=_finish([s.last.finish_reason for s in streams]),
        )
        try:
            reply.result = self.model.skills[task].parse(spoken, request)
        except ParseError as error:
            reply.status = "error"
            reply.error = ReplyError(code=error.code or "parse_error", message=error.message)
        return reply


def _finish(reasons: list[FinishReason | None]) -> FinishReason | None:
    worst_first: tuple[FinishReason, ...] = ("abort", "length", "stop")
    return next((reason for reason in worst_first if reason in reasons), None)


def joined(events: Sequence[Any]) -> list[Any]:
    """Pieces of one generation, or events of one answer, with the words in a row made one."""
    found: list[Any] = []
    for event in events:
        last = found[-1] if found else None
        if isinstance(last, Piece) and isinstance(event, Piece):
            found[-1] = last.then(event)
        elif isinstance(last, Delta) and isinstance(event, Delta):
            found[-1] = Delta(last.model, last.text + event.text)
        else:
            found.append(event)
    return found
