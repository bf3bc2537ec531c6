"""Runs a model on its engine: ask -> generate -> parse. This is the only file that uses both skills and engines."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from serve import tracing
from serve.engines.base import Engine, FinishReason, Generation, Memory, Piece, Prompt, State, Token, ToolReader, Wakes
from serve.engines.energy import EnergyMeter
from serve.errors import ModelError, ParseError
from serve.models.base import Model, with_limits
from serve.models.check_report import CheckReport, refusal, with_contract
from serve.models.reasoning import PieceSplitter
from serve.router.merge_streams import Ended, merge_streams
from serve.router.route import Status
from serve.tasks.reply import Delta, Reply, ReplyError, Usage
from serve.tasks.request import Request, reasoning_options

UNANSWERED = (
    "The reply ended within its reasoning, before an answer: give it more max_tokens, a thinking_token_budget, or "
    'reasoning_effort "none".'
)


@dataclass
class PartialGeneration:
    """The output of the engine for one prompt, as far as it has come. splitter: of a model that reasons."""

    splitter: PieceSplitter | None = None
    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    last: Piece = Piece("")
    ended: bool = False

    def add(self, piece: Piece) -> Piece:
        """Keep the engine's next piece. Return it with its reasoning split off."""
        if self.splitter is not None:
            piece = self.splitter.feed(piece)
        self.texts.append(piece.text)
        if piece.reasoning:
            self.reasoning.append(piece.reasoning)
        self.tokens.extend(piece.tokens)
        self.last = piece
        return piece

    def whole(self) -> Generation:
        return Generation("".join(self.texts), tuple(self.tokens), self.last.finish_reason == "length")


Check = Callable[[Model, Engine, Callable[[str], None]], Awaitable[CheckReport]]
"""(model, its engine, called with the progress as a sentence) -> the report."""


class Worker:
    """Answers tasks (`answer`) and plain conversations (`speak`) for one model.

    check: run once the engine is loaded; the model counts as ready when it is over. meter: of its GPUs' energy.
    """

    def __init__(
        self,
        model: Model,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        check: Check | None = None,
        meter: EnergyMeter | None = None,
    ) -> None:
        self.model = model
        self.report: CheckReport | None = None
        self._check = check
        self._meter = meter
        self.engine = engine
        self.clock = clock
        self._state: State = "starting"
        self._step = "waiting to start"
        self._since = clock()
        self._open_requests = 0
        self.memory: Memory | None = None
        self.wakes: Wakes | None = None

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def full(self) -> bool:
        """Return False: the limit on waiting requests is the pool's (deployments/routing)."""
        return False

    @property
    def joining(self) -> bool:
        """Return False: models of one process come together."""
        return False

    @property
    def failed(self) -> bool:
        return self._state == "failed"

    async def start(self) -> None:
        """Load the engine. Where that fails, status and replies say why; no error is raised."""
        self.mark("starting", "loading")
        try:
            await self.engine.start()
        except ModelError as error:
            self.mark("failed", error.message)
        else:
            self.model = with_limits(self.model, getattr(self.engine, "picture_limits", None))
            if self._check is not None:
                self.adopt(await self._check(self.model, self.engine, lambda step: self.mark("starting", step)))
            self.mark("ready", "ready")

    def adopt(self, report: CheckReport) -> None:
        """Take a check's report: answer by the contract that it found, and no task that it refuses."""
        self.report = report
        self.model = with_contract(self.model, report)

    def mark(self, state: State, step: str) -> None:
        """Set the status; `since` counts from the last change of state."""
        if state != self._state:
            self._since = self.clock()
        self._state, self._step = state, step

    async def status(self) -> Status:
        since_s = self.clock() - self._since
        return Status(
            self.name,
            self._state,
            self._step,
            since_s,
            self._open_requests,
            self.memory,
            report=self.report,
            wakes=self.wakes,
        )

    async def answer(self, task: str, request: Request) -> AsyncGenerator[Delta | Reply, None]:
        """Yield the generated text as deltas, then one Reply. Raises ModelError where there is no reply.

        Prompts are generated concurrently; their texts are yielded in the order of the prompts.
        """
        self._require_ready()
        if task not in self.model.skills:  # no fault of this process, so it answers other tasks on
            raise ModelError(
                f"This process of {self.name} began before it was to do {task}; one that does is being started.",
                code="model_starting",
            )
        if (why := refusal(self.model, task, self.report)) is not None:
            raise ModelError(f"{self.name} does no {task} here. {why}", code="check_failed")
        tracing.current().set({"gen_ai.request.model": self.name, "diptych.task": task})
        with self._counted() as used:
            skill = self.model.skills[task]
            prompts = await asyncio.to_thread(skill.ask, request) if skill.slow else skill.ask(request)
            batch, whole = request.priority == "batch", not request.stream
            prompts = [replace(prompt, batch=batch, whole=whole) for prompt in prompts]
            if (reasoning := self.model.reasoning) is not None:
                options, extend = reasoning_options(request), request.max_tokens is None
                prompts = [reasoning.prompt(prompt, options, extend=extend) for prompt in prompts]
            generations = [PartialGeneration(self._splitter(prompt)) for prompt in prompts]
            current = 0
            # Closed when the caller leaves or a prompt fails, so that the engine stops.
            async with contextlib.aclosing(merge_streams([self.engine.generate(p) for p in prompts])) as streams:
                async for index, item in streams:
                    generation = generations[index]
                    if not isinstance(item, Ended):
                        piece = generation.add(item)
                        if index == current and (piece.text or piece.reasoning):
                            yield Delta(self.name, piece.text, piece.reasoning, *_token_counts(generations))
                        continue
                    if item.error is not None:
                        raise item.error
                    generation.ended = True
                    while generations[current].ended and current + 1 < len(generations):
                        current += 1
                        later = generations[current]
                        text, thought = "\n" + "".join(later.texts), "".join(later.reasoning)
                        yield Delta(self.name, text, thought, *_token_counts(generations))
            if skill.slow:
                reply = await asyncio.to_thread(self._reply, task, request, generations)
            else:
                reply = self._reply(task, request, generations)
            reply.energy_j = used()
            yield reply

    async def speak(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Yield the engine's pieces, with log-probabilities; of a model that reasons, split.

        prompt: as `Reasoning.prompt` returns it. A video is reduced to the model's frames.
        """
        self._require_ready()
        tracing.current().set({"gen_ai.request.model": self.name})
        if prompt.video is not None:
            prompt = replace(prompt, video=prompt.video.sample(self.model.frames))
        splitter, reader = self._splitter(prompt), self._tool_reader(prompt)
        with self._counted():
            async with contextlib.aclosing(self.engine.generate(prompt)) as pieces:
                async for piece in pieces:
                    answered = piece if splitter is None else splitter.feed(piece)
                    yield answered if reader is None else reader.feed(answered)

    def _splitter(self, prompt: Prompt) -> PieceSplitter | None:
        return None if self.model.reasoning is None else self.model.reasoning.splitter(prompt)

    def _tool_reader(self, prompt: Prompt) -> ToolReader | None:
        """Return what reads the calls of functions in the reply's text; None where they are not in it."""
        if prompt.tools is None or prompt.tools.parser is None:
            return None
        reader: ToolReader = self.engine.tool_reader(prompt.tools, prompt.whole)  # type: ignore[attr-defined]
        return reader

    @contextlib.contextmanager
    def _counted(self) -> Iterator[Callable[[], float | None]]:
        """Count a request. Yields what returns the joules that it has used; None where they are not known."""
        self._open_requests += 1
        try:
            with contextlib.nullcontext(_unknown) if self._meter is None else self._meter.request() as used:
                yield used
        finally:
            self._open_requests -= 1

    def _require_ready(self) -> None:
        if self._state == "starting":
            raise ModelError(f"{self.name} is still starting: {self._step}.", code="model_starting")
        if self._state == "failed":
            raise ModelError(f"{self.name} cannot answer: {self._step}", code="model_failed")

    def _reply(self, task: str, request: Request, generations: Sequence[PartialGeneration]) -> Reply:
        wholes = [generation.whole() for generation in generations]
        prompt_tokens, completion_tokens = _token_counts(generations)
        tokens = tuple(token for whole in wholes for token in whole.tokens)
        reply = Reply(
            model=self.name,
            status="ok",
            text="\n".join(whole.text for whole in wholes),
            reasoning="\n".join("".join(each.reasoning) for each in generations if each.reasoning) or None,
            confidence=Generation("".join(whole.text for whole in wholes), tokens).confidence() if tokens else None,
            usage=Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens),
            finish_reason=_finish([generation.last.finish_reason for generation in generations]),
        )
        try:
            if any(generation.splitter is not None and generation.splitter.unanswered for generation in generations):
                raise ParseError(UNANSWERED)
            reply.result = self.model.skills[task].parse(wholes, request)
        except ParseError as error:
            reply.status = "error"
            reply.error = ReplyError(code=error.code or "parse_error", message=error.message)
        return reply


def _token_counts(generations: Sequence[PartialGeneration]) -> tuple[int, int]:
    """Return the tokens read and generated until now, as each generation's last piece has them."""
    last = [generation.last for generation in generations]
    return sum(piece.prompt_tokens for piece in last), sum(piece.completion_tokens for piece in last)


def _unknown() -> None:
    return None


def _finish(reasons: list[FinishReason | None]) -> FinishReason | None:
    worst_first: tuple[FinishReason, ...] = ("abort", "length", "stop")
    return next((reason for reason in worst_first if reason in reasons), None)


def joined(events: Sequence[Any]) -> list[Any]:
    """Return the events with consecutive pieces of one generation, or deltas of one answer, joined."""
    result: list[Any] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(last, Piece) and isinstance(event, Piece):
            result[-1] = last.then(event)
        elif isinstance(last, Delta) and isinstance(event, Delta):
            text, reasoning = last.text + event.text, last.reasoning + event.reasoning
            result[-1] = Delta(last.model, text, reasoning, event.prompt_tokens, event.completion_tokens)
        else:
            result.append(event)
    return result
