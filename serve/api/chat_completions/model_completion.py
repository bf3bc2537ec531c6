"""Completes a chat with one model, as OpenAI's API does."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

from serve.accounting import Contents, current_account
from serve.api.chat_completions.conversation import Conversation
from serve.api.chat_completions.request import FLEX, MAX_TOKENS, ChatCompletionRequest, json_schema
from serve.api.chat_completions.response import (
    Choice,
    CompletionEvents,
    CompletionHead,
    ResponseMessage,
    finish_reason,
    logprobs,
    slices,
    whole_calls,
    with_logprobs,
)
from serve.api.chat_completions.response import FinishReason as CompletionFinish
from serve.api.chat_completions.tools import CallReader, ToolUse, tool_use
from serve.api.events import refuse_overload
from serve.api.media_loader import MediaLoader
from serve.api.metrics import Metrics
from serve.api.responses import LastEvents
from serve.engines.base import FinishReason, Piece, Prompt, ReasoningOptions, Sampling, Token, ToolCallPart
from serve.errors import BadRequest, ModelError
from serve.models.base import Model, stops
from serve.models.tool_calls import MARKS, plain_turns, tool_messages
from serve.router.merge_streams import Ended, merge_streams
from serve.router.model_call import ModelCall
from serve.router.route import Deadline, Route
from serve.router.router import check_reasoning, takes_media, unsupported_media
from serve.tasks.reply import Usage
from serve.tasks.request import reasoning_options

DEADLINE_S = 600.0
MAX_LOGPROBS = 100_000
"""Largest number of log-probabilities in a response, including alternatives: about 7 MB of JSON."""
TASK = "conversation"
"""The `task` label of a conversation with one model in metrics."""


@dataclass
class ChoiceState:
    """The output of one choice, as far as it has come: kept whole for its account and for an answer in one piece."""

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tokens: list[Token] = field(default_factory=list)
    tool_calls: list[ToolCallPart] = field(default_factory=list)
    reader: CallReader | None = None
    finish: FinishReason | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, piece: Piece, *, single: bool = False) -> Piece:
        """Keep the next piece, and return it with its calls of functions read. single: only the first call counts."""
        if self.reader is not None:
            piece = self.reader.feed(piece)
        if single and piece.tool_calls:
            piece = replace(piece, tool_calls=tuple(part for part in piece.tool_calls if part.index == 0))
        self.tool_calls += piece.tool_calls
        self.texts.append(piece.text)
        self.reasoning.append(piece.reasoning)
        self.tokens += piece.tokens
        self.finish = piece.finish_reason or self.finish
        self.prompt_tokens = piece.prompt_tokens or self.prompt_tokens
        self.completion_tokens = piece.completion_tokens or max(self.completion_tokens, len(self.tokens))
        return piece

    def add_to(self, contents: Contents, model: str) -> None:
        """Add what the model wrote: its text, its calls of functions, and the text of calls that cannot be read."""
        unread = "" if self.reader is None else self.reader.unread()
        calls = [(call.function.name, call.function.arguments) for call in whole_calls(self.tool_calls)]
        contents.add_reply(model, "".join(self.texts) + unread, calls)


class ModelCompletion:
    """A completion by one model, with one or several choices. Raises BadRequest for unsupported fields."""

    def __init__(
        self,
        route: Route,
        metrics: Metrics,
        media: MediaLoader,
        request: ChatCompletionRequest,
        conversation: Conversation,
        arrived: float,
    ) -> None:
        """arrived: time of the request's head by the event loop's clock."""
        for name in ("quorum", "merge", "weights", "judge", "min_agreement"):
            if getattr(request, name) is not None:
                raise BadRequest(f"{name} is for tasks; {request.model} is one model.", param=name)
        self.route, self.metrics, self.media = route, metrics, media
        self.image, self.video = conversation.image, conversation.video
        self.request = request
        self.deadline = Deadline.after(request.deadline_s or DEADLINE_S, arrived)
        self.use = use = tool_use(request, route.model)
        sampling = sampling_for(request, route.model.ends, use)
        check_logprobs(request, sampling, route.model.family_args.get("max_model_len"))
        model, video = route.model, conversation.video
        if (video or conversation.image) and not takes_media(model, video is not None):
            raise unsupported_media([model.name], video is not None, conversation.media_path)
        question, path = conversation.question()
        if not (question or video or conversation.image):
            raise BadRequest("The last message has no words.", param=path, code="missing_text")
        calling = model.tools is not None and (use or any(turn.calls or turn.call for turn in conversation.turns))
        text = tool_messages(conversation.turns) if calling else model.converse(plain_turns(conversation.turns))
        options, extend = _reasoning(model, request), not (request.max_tokens or request.max_completion_tokens)
        seeds = [None if sampling.seed is None else sampling.seed + index for index in range(request.n or 1)]
        self.prompts = [
            Prompt(
                text,
                conversation.image,
                replace(sampling, seed=seed),
                video,
                whole=not (request.stream or request.logprobs),  # log-probabilities come in small pieces
                batch=request.service_tier == FLEX,
                tools=None if use is None else use.tools,
            )
            for seed in seeds
        ]
        if model.reasoning is not None:
            self.prompts = [model.reasoning.prompt(prompt, options, extend=extend) for prompt in self.prompts]
        account = current_account()
        account.task = TASK
        if account.contents is not None:
            account.contents.add_texts(turn.text for turn in conversation.turns)
        if use is not None and use.tools.parser is not None:
            self.prompts = [_with_marks(prompt, MARKS[use.tools.parser]) for prompt in self.prompts]
        self.choices = [ChoiceState(reader=None if use is None else use.reader()) for _ in self.prompts]
        refuse_overload([route], TASK, metrics)

    async def whole(self, head: CompletionHead) -> list[bytes]:
        """Return the completion as JSON, in parts."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        choices = [
            Choice(
                index=index,
                message=ResponseMessage(
                    content="".join(choice.texts) or (None if choice.tool_calls else ""),
                    reasoning="".join(choice.reasoning) or None,
                    tool_calls=whole_calls(choice.tool_calls) or None,
                ),
                finish_reason=self._finish_reason(choice),
            )
            for index, choice in enumerate(self.choices)
        ]
        completion = head.completion(choices, self._usage())
        if not self.request.logprobs:
            return [completion.model_dump_json().encode()]
        tokens = [choice.tokens for choice in self.choices]
        return await with_logprobs(completion, choices, tokens, self.request.top_logprobs or 0)

    async def stream(self, head: CompletionHead) -> AsyncGenerator[bytes, None]:
        """Yield the first chunks of all choices with the first piece of any, then each piece as it arrives."""
        chunks = head.events(self.request.stream_options, self._usage)
        announced = False
        ended, closing = 0, b""
        async with aclosing(self._pieces()) as pieces:
            async for index, piece in pieces:
                data = b""
                if not announced:
                    announced = True
                    data += chunks.open([{} for _ in self.choices])
                if piece.reasoning:
                    data += chunks.reasoning(index, piece.reasoning)
                # the rest of a call comes before text, where the replica joined them: text ends the item
                rest = tuple(itertools.takewhile(lambda part: not part.id, piece.tool_calls))
                if rest:
                    data += chunks.tool_calls(index, rest)
                if self.request.logprobs and piece.tokens:
                    for chunk in self._with_logprobs(chunks, index, piece):
                        if data:
                            yield data
                            await asyncio.sleep(0)
                        data = chunk
                elif piece.text:
                    data += chunks.text(index, piece.text)
                if begun := piece.tool_calls[len(rest) :]:
                    data += chunks.tool_calls(index, begun)
                if piece.finish_reason is not None:
                    ended += 1
                    data += chunks.finish(index, self._finish_reason(self.choices[index]))
                if ended == len(self.choices):
                    closing = data  # sent together with the end of the stream
                elif data:
                    yield data
        yield LastEvents(closing + chunks.last())

    def _finish_reason(self, choice: ChoiceState) -> CompletionFinish:
        """Return why a choice ended. A reply that was held to one function's arguments has stopped, as OpenAI says."""
        named = self.use is not None and self.use.function is not None
        return finish_reason(choice.finish, called=bool(choice.tool_calls) and not named)

    def _with_logprobs(self, chunks: CompletionEvents, index: int, piece: Piece) -> Iterator[bytes]:
        """Yield the piece as chunks of bounded size; there are several where the replica joined pieces, as for a
        slow client (serve/worker.py)."""
        top = self.request.top_logprobs or 0
        for i, part in enumerate(slices(piece.tokens, top)):
            yield chunks.text(index, "" if i else piece.text, logprobs=logprobs(part, top))

    async def _pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield (index of the choice, its next piece). Count all choices as one reply in the metrics."""
        async with contextlib.AsyncExitStack() as stack:
            prompts = await self._prompts(stack)
            call = ModelCall(self.route.model.name, TASK, self.deadline)
            status = "error"
            code: str | None = None
            try:
                answers = [call.span.parent_of(self.route.speak(prompt)) for prompt in prompts]
                async with aclosing(merge_streams(answers, self.deadline.at)) as streams:
                    async for index, item in streams:
                        if not isinstance(item, Ended):
                            call.record_text()
                            yield index, self.choices[index].add(item, single=self.use is not None and self.use.single)
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
            except BadRequest as error:  # engines do not know the request's fields
                status = "refused"
                param = "messages" if error.param in (None, "question") else error.param
                raise BadRequest(error.message, param=param, code=error.code) from None
            finally:
                usage = self._usage()
                self.metrics.reply(
                    call.model, TASK, status, call.seconds(), code=code, first_s=call.first_s, usage=usage
                )
                if (contents := current_account().contents) is not None:
                    for choice in self.choices:
                        choice.add_to(contents, call.model)
                call.close(usage, [choice.finish for choice in self.choices if choice.finish is not None], code)

    async def _prompts(self, stack: contextlib.AsyncExitStack) -> list[Prompt]:
        """Return the prompts, with their image or video fetched and decoded for as long as `stack` is open.

        The image of a single prompt is decoded in the replica. For several prompts it is decoded here, since its file
        would be sent once for each.
        """
        self.deadline.check()
        if self.image is not None and len(self.prompts) == 1:
            stack.enter_context(await self.media.fetch(self.image, self.deadline))
        elif self.image is not None:
            await stack.enter_async_context(self.media.decoded_image(self.image, self.deadline))
        if self.video is None:
            return self.prompts
        await stack.enter_async_context(self.media.decoded_video(self.video, self.deadline))
        video = self.video.sample(self.route.model.frames)
        return [replace(prompt, video=video) for prompt in self.prompts]

    def _usage(self) -> Usage:
        """Return the token counts; the prompt's tokens are counted once for all choices."""
        prompt = max(choice.prompt_tokens for choice in self.choices)
        completion = sum(choice.completion_tokens for choice in self.choices)
        return Usage(prompt_tokens=prompt, completion_tokens=completion)


def _reasoning(model: Model, request: ChatCompletionRequest) -> ReasoningOptions:
    """Return what the request asks of a model that reasons. Raises BadRequest naming what the model cannot do.

    A grammar holds from the first token on, so with a response format, or a call that it must make, the model cannot
    reason, unless it is a server that sees to both (`Reasoning.schemas`).
    """
    options = reasoning_options(request)
    check_reasoning([model], options)
    must_call = bool(request.tools) and request.tool_choice not in (None, "none", "auto")
    if model.reasoning is None or model.reasoning.schemas:
        return options
    if not must_call and json_schema(request.response_format) is None:
        return options
    if options.on or not model.reasoning.switchable and model.reasoning.on is not False:
        raise BadRequest(
            f"{model.name} cannot reason and keep to a {'tool choice' if must_call else 'response format'}.",
            param="tool_choice" if must_call else "response_format",
            code="unsupported_parameter",
        )
    return ReasoningOptions(effort="none")


def _with_marks(prompt: Prompt, marks: tuple[str, ...]) -> Prompt:
    """Return a prompt whose reply keeps the special tokens of these texts."""
    return replace(prompt, sampling=replace(prompt.sampling, marks=(*prompt.sampling.marks, *marks)))


def sampling_for(request: ChatCompletionRequest, ends: Sequence[str], use: ToolUse | None = None) -> Sampling:
    """Return the sampling parameters, with OpenAI's defaults. ends: stop strings of the model's family. use: how the
    reply may call functions.

    Raises BadRequest for fields that contradict each other.
    """
    lengths = {request.max_tokens, request.max_completion_tokens} - {None}
    if len(lengths) > 1:
        raise BadRequest("max_tokens and max_completion_tokens differ.", param="max_tokens")
    if request.top_logprobs and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true.", param="top_logprobs")
    wanted = json_schema(request.response_format)
    if use is not None and use.json_schema is None and wanted is not None:  # one that must call has no other text
        raise BadRequest(
            "A reply that may call tools or not has no response format: choose by tool_choice.",
            param="response_format",
        )
    if use is not None and request.logprobs:
        raise BadRequest("A reply that may call tools has no logprobs.", param="logprobs")
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
        json_schema=wanted if use is None else use.json_schema,
    )


def check_logprobs(request: ChatCompletionRequest, sampling: Sampling, context: int | None) -> None:
    """Raise BadRequest for more than MAX_LOGPROBS. context: the model's context length in tokens."""
    longest = sampling.max_tokens if context is None else min(sampling.max_tokens, context)
    count = (request.n or 1) * longest * (1 + sampling.top_logprobs)
    if sampling.logprobs and count > MAX_LOGPROBS:
        raise BadRequest(
            f"n x max_tokens x (1 + top_logprobs) is {count:,}; a reply holds at most {MAX_LOGPROBS:,}.",
            param="top_logprobs" if sampling.top_logprobs else "logprobs",
        )
