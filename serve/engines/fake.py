"""A scripted engine for tests, load tests and the page without a model. Imports no torch."""

import asyncio
import itertools
import os
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from pathlib import Path

from serve.engines.adapters import Adapter
from serve.engines.base import FinishReason, Memory, Piece, Prompt, Token
from serve.errors import BadRequest, ModelError
from serve.media.decoding import MediaDecoder

KEPT = 100
Words = str | Sequence[str]
Replies = Words | Mapping[str, Words] | Callable[[Prompt], Words]


class FakeEngine:
    """An engine that generates given replies, piece by piece.

    replies: one text for every prompt; a mapping from a part of the prompt's text to a reply (the longest part that
    occurs is used, "" matches any prompt); or a function of the prompt. A text is split into words, a sequence is used
    as pieces. delay_s: seconds before each piece. first_delay_s: additional seconds before the first one. start_s:
    seconds that `start` takes. fail_start: the message that `start` fails with. needs: a file without which it fails.
    fail_after: pieces after which ModelError is raised. die_after: the same, and the engine is dead until `revive`.
    logprob: of each token. max_chars: longer prompts are refused. finish: the finish reason where max_tokens is not
    reached. image_tokens: counted for each image. slots: requests answered at a time; others wait. tally: a folder with
    one file for each request being answered, its name beginning with the pid. adapters: replies by adapter, in place of
    `replies`. fail_adapters: error messages by adapter. decoder: decodes undecoded images. sleep_s, wake_s: seconds
    that `sleep` and `wake` take. fail_wake: the message that `wake` fails with.

    added: names in prompts of the adapters that were added while it ran. prompts: the last `kept` prompts. speaking:
    requests being answered. aborted: requests that were closed early.
    """

    memory: Memory | None = None

    def __init__(
        self,
        replies: Replies = "yes",
        *,
        delay_s: float = 0.0,
        first_delay_s: float = 0.0,
        start_s: float = 0.0,
        fail_start: str | None = None,
        needs: str | None = None,
        fail_after: int | None = None,
        die_after: int | None = None,
        logprob: float = -0.1,
        max_chars: int | None = None,
        finish: FinishReason = "stop",
        image_tokens: int = 49,
        slots: int = 1_000_000,
        tally: str | None = None,
        kept: int = KEPT,
        adapters: Mapping[str, Replies] | None = None,
        fail_adapters: Mapping[str, str] | None = None,
        decoder: MediaDecoder | None = None,
        sleep_s: float = 0.0,
        wake_s: float = 0.0,
        fail_wake: str | None = None,
    ) -> None:
        self.sleep_s, self.wake_s, self.fail_wake = sleep_s, wake_s, fail_wake
        self.sleeps = False
        self.replies = replies
        self.delay_s, self.first_delay_s, self.start_s = delay_s, first_delay_s, start_s
        self.fail_start, self.fail_after, self.die_after = fail_start, fail_after, die_after
        self.needs = None if needs is None else Path(needs)
        self.logprob, self.max_chars, self.finish, self.image_tokens = logprob, max_chars, finish, image_tokens
        self.adapters, self.fail_adapters = dict(adapters or {}), dict(fail_adapters or {})
        self.decoder = decoder or MediaDecoder()
        self.prompts: deque[Prompt] = deque(maxlen=kept)
        self.speaking = self.aborted = 0
        self.started = self.dead = False
        self.tally = None if tally is None else Path(tally)
        self._asleep: set[asyncio.Future[None]] = set()
        self._marks = itertools.count()
        self.added: set[str] = set()
        self._added_count = itertools.count(1)
        self._slots = asyncio.Semaphore(slots)

    async def start(self) -> None:
        """Sleep for `start_s`. Raises ModelError where `fail_start` is given, or the file that it needs is missing."""
        await asyncio.sleep(self.start_s)
        if self.needs is not None and not self.needs.exists():
            raise ModelError(f"There is no {self.needs}.", code="load_failed")
        if self.fail_start is not None:
            raise ModelError(self.fail_start, code="load_failed")
        self.started = True

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate a reply; `start` need not have been called."""
        return self._generate(prompt)

    async def check(self) -> None:
        """Raise ModelError after `kill`."""
        if self.dead:
            raise ModelError("The model's engine died; it has to be started again.", code="engine_dead")

    async def check_adapter(self, adapter: str) -> None:
        """Raise ModelError for an adapter in `fail_adapters`."""
        await self.check()
        if adapter in self.fail_adapters:
            raise ModelError(self.fail_adapters[adapter], code="adapter_refused")

    async def add_adapter(self, adapter: Adapter) -> str:
        """Add an adapter, which answers as the one of its name in `adapters`. Raises ModelError as `check_adapter`."""
        await self.check_adapter(adapter.name)
        name = f"{adapter.name}#{next(self._added_count)}"
        self.added.add(name)
        return name

    async def remove_adapter(self, name: str) -> None:
        """Remove an added adapter."""
        self.added.remove(name)

    async def stop(self) -> None:
        self.started = False

    async def sleep(self) -> None:
        """Sleep: until `wake` no request is answered."""
        self.sleeps = True
        await asyncio.sleep(self.sleep_s)

    async def wake(self) -> None:
        """Wake up. Raises ModelError where `fail_wake` is given."""
        await asyncio.sleep(self.wake_s)
        if self.fail_wake is not None:
            raise ModelError(self.fail_wake, code="load_failed")
        self.sleeps = False

    def kill(self) -> None:
        """Fail all running requests at once, and all later ones until `revive`."""
        self.dead = True
        for sleeper in self._asleep:
            _wake(sleeper)

    def revive(self) -> None:
        self.dead = False

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        await self.check()
        if self.sleeps:
            raise ModelError("The model's engine is asleep.", code="internal_error")
        if prompt.image is not None:
            async with self.decoder.decode_image(
                prompt.image
            ):  # as every engine does, so that a damaged file is refused
                pass
        self.prompts.append(prompt)
        if self.max_chars is not None and len(prompt.text) > self.max_chars:
            raise BadRequest("The prompt is too long.", param="question", code="context_length_exceeded")
        pieces = self._pieces(prompt)
        prompt_tokens = len(prompt.text.split()) + (self.image_tokens if prompt.image is not None else 0)
        most = prompt.sampling.max_tokens
        finish: FinishReason = "length" if len(pieces) > most else self.finish
        pieces = pieces[:most]
        self.speaking += 1
        whole = False
        mark = self._mark()
        try:
            async with self._slots:
                await self._wait(self.first_delay_s)
                for count, text in enumerate(pieces or [""]):
                    await self._wait(self.delay_s)
                    self._fail_if_due(count)
                    top = ((text, self.logprob),) if prompt.sampling.top_logprobs else ()
                    tokens = (Token(text, self.logprob, top),) if pieces and prompt.sampling.logprobs else ()
                    last = count + 1 >= len(pieces)
                    whole = last
                    yield Piece(text, tokens, finish if last else None, prompt_tokens, min(count + 1, len(pieces)))
        finally:
            if mark is not None:
                mark.unlink(missing_ok=True)
            self.speaking -= 1
            self.aborted += not whole

    def _mark(self) -> Path | None:
        """Create a file in `tally` for a request being answered, so that other processes can count them."""
        if self.tally is None:
            return None
        mark = self.tally / f"{os.getpid()}-{id(self)}-{next(self._marks)}"
        mark.touch()
        return mark

    def _pieces(self, prompt: Prompt) -> list[str]:
        replies = self.adapters.get((prompt.adapter or "").partition("#")[0], self.replies)
        if callable(replies):
            reply = replies(prompt)
        elif isinstance(replies, Mapping):
            parts = [part for part in replies if part in prompt.text]
            if not parts:
                raise ModelError(f"The fake engine was told nothing about {prompt.text!r}.", code="untold")
            reply = replies[max(parts, key=len)]
        else:
            reply = replies
        return re.findall(r"\S+\s*|\s+", reply) if isinstance(reply, str) else list(reply)

    async def _wait(self, seconds: float) -> None:
        """Sleep, waking at `kill`. Raises ModelError where the engine is dead."""
        if seconds > 0 and not self.dead:
            loop = asyncio.get_running_loop()
            woken = loop.create_future()
            alarm = loop.call_later(seconds, _wake, woken)
            self._asleep.add(woken)
            try:
                await woken
            finally:
                alarm.cancel()
                self._asleep.discard(woken)
        else:
            await asyncio.sleep(0)
        await self.check()

    def _fail_if_due(self, count: int) -> None:
        if self.die_after is not None and count >= self.die_after:
            self.kill()
            raise ModelError("The model's engine died; it has to be started again.", code="engine_dead")
        if self.fail_after is not None and count >= self.fail_after:
            raise ModelError("The model failed.", code="model_error")


def _wake(sleeper: asyncio.Future[None]) -> None:
    if not sleeper.done():
        sleeper.set_result(None)
