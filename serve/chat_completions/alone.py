"""One model, asked directly: plain OpenAI behaviour."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from serve import tracing
from serve.chat_completions.conversation import Conversation
from serve.chat_completions.grammar import json_schema
from serve.chat_completions.replies import (
    Choice,
    Chunks,
    Head,
    Said,
    finish_reason,
    logprobs,
    slices,
    with_logprobs,
)
from serve.chat_completions.request import FLEX, MAX_TOKENS, ChatCompletionRequest
from serve.deadline import Deadline
from serve.engines.base import FinishReason, Piece, Prompt, Sampling, Token
from serve.errors import BadRequest, ModelError
from serve.models.base import stops
from serve.route import Route
from serve.router import takes, unseeing, unseen
from serve.tasks.base import Usage
from serve.wire.fan_out import FanOut
from serve.wire.sse import Last

DEADLINE_S = 600.0
MAX_LOGPROBS = 100_000
"""Log-probabilities of one request, alternatives counted: about 7 MB of JSON."""
TASK = "conversation"
"""What a conversation with one model is called in metrics, beside the tasks."""


@dataclass
class Voice:
    """One choice as it is being spoken."""

    words: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def hear(self, piece: Piece) -> None:
        self.words.append(piece.text)
        self.tokens += piece.tokens
        self.finish = piece.finish_reason or self.finish
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.completion_tokens = piece.completion_tokens or max(self.completion_tokens, len(self.tokens))


class Alone:
    """One conversation with one model, in one or several choices. Raises BadRequest for what it cannot honour."""

    def __init__(
        self,
        fan_out: FanOut,
        route: Route,
        request: ChatCompletionRequest,
        conversation: Conversation,
        arrived: float,
    ) -> None:
        """arrived: when the request's head did, by the event loop's clock."""
        for name in ("quorum", "merge", "weights", "judge"):
            if getattr(request, name) is not None:
                raise BadRequest(f"{name} is for tasks; {request.model} is one model.", param=name)
        self.route = route
        self.meters, self.pictures = fan_out.meters, fan_out.pictures
        self.image, self.video = conversation.image, conversation.video
        self.request = request
        self.deadline = Deadline.after(request.deadline_s or DEADLINE_S, arrived)
        drawn = sampling(request, route.model.ends)
        check_logprobs(request, drawn, route.model.engine.get("max_model_len"))
        model, film = route.model, conversation.video
        if (film or conversation.image) and not takes(model, film is not None):
            refused = unseeing([model.name], film is not None)
            raise BadRequest(refused, param=conversation.shown, code=unseen(film is not None))
        question, path = conversation.question()
        if not (question or film or conversation.image):
            raise BadRequest("The last message has no words.", param=path, code="missing_text")
        text = model.converse(conversation.turns)
        seeds = [None if drawn.seed is None else drawn.seed + at for at in range(request.n or 1)]
        self.prompts = [
            Prompt(
                text,
                conversation.image,
                replace(drawn, seed=seed),
                film,
                whole=not (request.stream or request.logprobs),  # log-probabilities: a few at a time
                batch=request.service_tier == FLEX,
            )
            for seed in seeds
        ]
        self.voices = [Voice() for _ in self.prompts]

    async def whole(self, head: Head) -> list[bytes]:
        """Return the completion as JSON, in parts."""
        async with aclosing(self._heard()) as heard:
            async for _ in heard:
                pass
        choices = [
            Choice(
                index=at,
                message=Said(content="".join(voice.words)),
                finish_reason=finish_reason(voice.finish),
            )
            for at, voice in enumerate(self.voices)
        ]
        completion = head.completion(choices, self._usage())
        if not self.request.logprobs:
            return [completion.model_dump_json().encode()]
        return await with_logprobs(completion, [voice.tokens for voice in self.voices], self.request.top_logprobs or 0)

    async def frames(self, head: Head) -> AsyncGenerator[bytes, None]:
        chunks = Chunks(head, self.request.stream_options, self._usage)
        begun = False
        ended, closing = 0, b""
        async with aclosing(self._heard()) as heard:
            async for at, piece in heard:
                said = b""
                if not begun:  # every choice is announced before one speaks, in order: clients count on it
                    begun = True
                    said += b"".join(map(chunks.role, range(len(self.prompts))))
                if self.request.logprobs and piece.tokens:
                    for chunk in self._with_logprobs(chunks, at, piece):
                        if said:
                            yield said
                            await asyncio.sleep(0)
                        said = chunk
                elif piece.text:
                    said += chunks.words(at, piece.text)
                if piece.finish_reason is not None:
                    ended += 1
                    said += chunks.finish(at, finish_reason(piece.finish_reason))
                if ended == len(self.prompts):
                    closing = said  # goes with what closes the stream, which comes at once
                elif said:
                    yield said
        yield Last(closing + chunks.last())

    def _with_logprobs(self, chunks: Chunks, at: int, piece: Piece) -> Iterator[bytes]:
        """Return the piece's words as chunks: several where they have piled up behind a client that reads slowly."""
        top = self.request.top_logprobs or 0
        for i, part in enumerate(slices(piece.tokens, top)):
            yield chunks.words(at, "" if i else piece.text, logprobs=logprobs(part, top))

    async def _heard(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Every choice's pieces as they come; counted as one reply in the metrics."""
        began, status = time.monotonic(), "error"
        first_s: float | None = None
        code: str | None = None
        looking = contextlib.AsyncExitStack()
        speaking = [self.route.speak(prompt) for prompt in await self._prompts(looking)]
        end = self.deadline.at
        span = tracing.asking(self.route.model.name, TASK)
        span.enter()
        try:
            async with aclosing(
                single(speaking[0], end) if len(speaking) == 1 else interleaved(speaking, end)
            ) as pieces:
                async for at, piece in pieces:
                    if first_s is None:
                        first_s = time.monotonic() - began
                    self.voices[at].hear(piece)
                    yield at, piece
            if any(voice.finish is None for voice in self.voices):
                raise ModelError(f"{self.route.model.name} stopped in the middle of its reply.", code="engine_dead")
            status = "ok"
        except TimeoutError:
            status, code = "timeout", "deadline_exceeded"
            said = f"{self.route.model.name} had not finished after {self.deadline.seconds:g} s."
            raise ModelError(said, code=code) from None
        except ModelError as error:
            code = error.code
            raise
        except (asyncio.CancelledError, GeneratorExit):
            status = "left"
            raise
        except BadRequest as error:  # engines know prompts, not messages
            status = "refused"
            param = "messages" if error.param in (None, "question") else error.param
            raise BadRequest(error.message, param=param, code=error.code) from None
        finally:
            name, took = self.route.model.name, time.monotonic() - began
            usage, reasons = self._usage(), [voice.finish for voice in self.voices if voice.finish is not None]
            self.meters.reply(name, TASK, status, took, code=code, first_s=first_s, usage=usage)
            span.answered(
                read=usage.prompt_tokens, spoke=usage.completion_tokens, reasons=reasons, first_s=first_s, code=code
            )
            span.end()
            await looking.aclose()

    async def _prompts(self, looking: contextlib.AsyncExitStack) -> list[Prompt]:
        """Return the prompts with what they show brought here.

        One prompt's picture is decoded by the model's own process. That of several is decoded here: the file would
        travel once for each of them.
        """
        self.deadline.check()
        if self.image is not None and len(self.prompts) == 1:
            looking.enter_context(await self.pictures.fetch(self.image, self.deadline))
        elif self.image is not None:
            await looking.enter_async_context(self.pictures.read(self.image, self.deadline))
        if self.video is None:
            return self.prompts
        await looking.enter_async_context(self.pictures.watched(self.video, self.deadline))
        film = self.video.sample(self.route.model.frames)
        return [replace(prompt, video=film) for prompt in self.prompts]

    def _usage(self) -> Usage:
        """The prompt is counted once, however many choices were drawn from it."""
        prompt = max(voice.prompt_tokens for voice in self.voices)
        completion = sum(voice.completion_tokens for voice in self.voices)
        return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def sampling(request: ChatCompletionRequest, ends: Sequence[str]) -> Sampling:
    """Return how tokens are drawn, with OpenAI's defaults. ends: texts at which the model's replies end.

    Raises BadRequest for fields that contradict each other.
    """
    lengths = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(lengths) > 1:
        raise BadRequest("max_tokens and max_completion_tokens differ.", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    return Sampling(
        max_tokens=lengths.pop() or MAX_TOKENS if lengths else MAX_TOKENS,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=stops(request, ends),
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        ignore_eos=bool(request.ignore_eos),
        logprobs=bool(request.logprobs),
        top_logprobs=request.top_logprobs or 0,
        json_schema=json_schema(request.response_format),
    )


def check_logprobs(request: ChatCompletionRequest, drawn: Sampling, context: int | None) -> None:
    """Raise BadRequest for more log-probabilities than one reply may hold. context: tokens that the model can hold."""
    longest = drawn.max_tokens if context is None else min(drawn.max_tokens, context)
    count = (request.n or 1) * longest * (1 + drawn.top_logprobs)
    if drawn.logprobs and count > MAX_LOGPROBS:
        raise BadRequest(
            f"n x max_tokens x (1 + top_logprobs) is {count:,}; a reply holds at most {MAX_LOGPROBS:,}.",
            param="top_logprobs" if drawn.top_logprobs else "logprobs",
        )


async def single(source: AsyncGenerator[Piece, None], deadline: float) -> AsyncGenerator[tuple[int, Piece], None]:
    """`interleaved` for one source, which needs no task and no queue of its own."""
    async with aclosing(source):
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    piece = await anext(source)
            except StopAsyncIteration:
                return
            yield 0, piece


async def interleaved(
    sources: Sequence[AsyncGenerator[Piece, None]], deadline: float
) -> AsyncGenerator[tuple[int, Piece], None]:
    """(which source, its piece) in the order they come. Raises a source's error, TimeoutError at the deadline.

    deadline: on the event loop's clock. Leaving early closes every source.
    """
    queue: asyncio.Queue[tuple[int, Piece] | asyncio.Task[None]] = asyncio.Queue()

    async def listen(at: int, source: AsyncGenerator[Piece, None]) -> None:
        async with aclosing(source):
            async for piece in source:
                queue.put_nowait((at, piece))

    jobs = [asyncio.create_task(listen(at, source)) for at, source in enumerate(sources)]
    for job in jobs:
        job.add_done_callback(queue.put_nowait)
    speaking = len(jobs)
    try:
        while speaking:
            async with asyncio.timeout_at(deadline):  # never around a yield: tasks may differ there
                item = await queue.get()
            if isinstance(item, tuple):
                yield item
            else:
                item.result()
                speaking -= 1
    finally:
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
