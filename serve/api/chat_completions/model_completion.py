"""A completion by one model: plain OpenAI behaviour."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from serve.api.chat_completions.conversation import Conversation
from serve.api.chat_completions.grammar import json_schema
from serve.api.chat_completions.replies import (
    Choice,
    Chunks,
    Head,
    ResponseMessage,
    finish_reason,
    logprobs,
    slices,
    with_logprobs,
)
from serve.api.chat_completions.request import FLEX, MAX_TOKENS, ChatCompletionRequest
from serve.api.metrics import Metrics
from serve.api.pictures import Pictures
from serve.api.sse import Last
from serve.engines.base import FinishReason, Piece, Prompt, Sampling, Token
from serve.errors import BadRequest, ModelError
from serve.models.base import stops
from serve.router.deadline import Deadline
from serve.router.merge_streams import Ended, merge_streams
from serve.router.model_call import ModelCall
from serve.router.plan import takes, wrong_medium
from serve.router.route import Route
from serve.tasks.base import Usage

DEADLINE_S = 600.0
MAX_LOGPROBS = 100_000
"""Log-probabilities of one request, alternatives counted: about 7 MB of JSON."""
TASK = "conversation"
"""The label of a conversation with one model in metrics, beside the tasks."""


@dataclass
class ChoiceState:
    """One choice so far."""

    texts: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, piece: Piece) -> None:
        self.texts.append(piece.text)
        self.tokens += piece.tokens
        self.finish = piece.finish_reason or self.finish
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.completion_tokens = piece.completion_tokens or max(self.completion_tokens, len(self.tokens))


class ModelCompletion:
    """One conversation with one model, in one or several choices. Raises BadRequest for what it cannot honour."""

    def __init__(
        self,
        route: Route,
        metrics: Metrics,
        pictures: Pictures,
        request: ChatCompletionRequest,
        conversation: Conversation,
        arrived: float,
    ) -> None:
        """arrived: when the request's head came, by the event loop's clock."""
        for name in ("quorum", "merge", "weights", "judge"):
            if getattr(request, name) is not None:
                raise BadRequest(f"{name} is for tasks; {request.model} is one model.", param=name)
        self.route, self.metrics, self.pictures = route, metrics, pictures
        self.image, self.video = conversation.image, conversation.video
        self.request = request
        self.deadline = Deadline.after(request.deadline_s or DEADLINE_S, arrived)
        drawn = sampling(request, route.model.ends)
        check_logprobs(request, drawn, route.model.family_args.get("max_model_len"))
        model, film = route.model, conversation.video
        if (film or conversation.image) and not takes(model, film is not None):
            raise wrong_medium([model.name], film is not None, conversation.shown)
        question, path = conversation.question()
        if not (question or film or conversation.image):
            raise BadRequest("The last message has no words.", param=path, code="missing_text")
        text = model.converse(conversation.turns)
        seeds = [None if drawn.seed is None else drawn.seed + index for index in range(request.n or 1)]
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
        self.choices = [ChoiceState() for _ in self.prompts]

    async def whole(self, head: Head) -> list[bytes]:
        """Return the completion as JSON, in parts."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [
            Choice(
                index=index,
                message=ResponseMessage(content="".join(choice.texts)),
                finish_reason=finish_reason(choice.finish),
            )
            for index, choice in enumerate(self.choices)
        ]
        completion = head.completion(choices, self._usage())
        if not self.request.logprobs:
            return [completion.model_dump_json().encode()]
        tokens = [choice.tokens for choice in self.choices]
        return await with_logprobs(completion, tokens, self.request.top_logprobs or 0)

    async def frames(self, head: Head) -> AsyncGenerator[bytes, None]:
        """Yield the chunks as the choices' pieces come."""
        chunks = Chunks(head, self.request.stream_options, self._usage)
        announced = False
        ended, closing = 0, b""
        async with aclosing(self._pieces()) as pieces:
            async for index, piece in pieces:
                data = b""
                if not announced:  # every choice, in order, before any has text: clients count on it
                    announced = True
                    data += b"".join(map(chunks.role, range(len(self.choices))))
                if self.request.logprobs and piece.tokens:
                    for chunk in self._with_logprobs(chunks, index, piece):
                        if data:
                            yield data
                            await asyncio.sleep(0)
                        data = chunk
                elif piece.text:
                    data += chunks.words(index, piece.text)
                if piece.finish_reason is not None:
                    ended += 1
                    data += chunks.finish(index, finish_reason(piece.finish_reason))
                if ended == len(self.choices):
                    closing = data  # goes with what closes the stream, which comes at once
                elif data:
                    yield data
        yield Last(closing + chunks.last())

    def _with_logprobs(self, chunks: Chunks, index: int, piece: Piece) -> Iterator[bytes]:
        """Return the piece's text as chunks: several where it has piled up behind a client that reads slowly."""
        top = self.request.top_logprobs or 0
        for i, part in enumerate(slices(piece.tokens, top)):
            yield chunks.words(index, "" if i else piece.text, logprobs=logprobs(part, top))

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield (index of the choice, its next piece), and count all choices as one reply in the metrics."""
        async with contextlib.AsyncExitStack() as media:
            prompts = await self._prompts(media)
            call = ModelCall(self.route.model.name, TASK, self.deadline)
            status = "error"
            code: str | None = None
            try:
                answers = [call.span.start_of(self.route.speak(prompt)) for prompt in prompts]
                async with aclosing(merge_streams(answers, self.deadline.at)) as streams:
                    async for index, item in streams:
                        if not isinstance(item, Ended):
                            call.spoke()
                            self.choices[index].add(item)
                            yield index, item
                        elif item.error is not None:
                            raise item.error
                if any(choice.finish is None for choice in self.choices):
                    raise ModelError(f"{call.model} stopped in the middle of its reply.", code="engine_dead")
                status = "ok"
            except TimeoutError:
                status, code = "timeout", "deadline_exceeded"
                raise call.timeout() from None
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
                usage = self._usage()
                self.metrics.reply(
                    call.model, TASK, status, call.seconds(), code=code, first_s=call.first_s, usage=usage
                )
                call.close(usage, [choice.finish for choice in self.choices if choice.finish is not None], code)

    async def _prompts(self, media: contextlib.AsyncExitStack) -> list[Prompt]:
        """Return the prompts, with their image or film fetched and decoded for as long as `media` is open.

        One prompt's picture is decoded by the model's own process. That of several is decoded here: the file would
        travel once for each of them.
        """
        self.deadline.check()
        if self.image is not None and len(self.prompts) == 1:
            media.enter_context(await self.pictures.fetch(self.image, self.deadline))
        elif self.image is not None:
            await media.enter_async_context(self.pictures.read(self.image, self.deadline))
        if self.video is None:
            return self.prompts
        await media.enter_async_context(self.pictures.watched(self.video, self.deadline))
        film = self.video.sample(self.route.model.frames)
        return [replace(prompt, video=film) for prompt in self.prompts]

    def _usage(self) -> Usage:
        """Return the tokens, the prompt's once, however many choices were drawn from it."""
        prompt = max(choice.prompt_tokens for choice in self.choices)
        completion = sum(choice.completion_tokens for choice in self.choices)
        return Usage(prompt_tokens=prompt, completion_tokens=completion)


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
