"""Implements Engine for RapidOCR: an image in; its text, or the boxes of phrases in it, out."""

import asyncio
import contextlib
import json
import math
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from serve.engines.adapters import Adapter
from serve.engines.base import FinishReason, Memory, Piece, Prompt, Token
from serve.engines.ocr.lines import PhraseBox, TextLine, places, rows
from serve.engines.ocr.reader import BATCH, FoundLine, TextReader, fit_image, is_installed
from serve.errors import BadRequest, ModelError
from serve.media.decoding import MediaDecoder
from serve.media.image import Image

READ = ""
"""A prompt's text that asks for all text in the image."""
LINES = "lines"
"""One that asks for its lines with their places. Any other is a list of phrases to find, as JSON."""
THREADS = 1
AT_ONCE = 4
"""Images whose lines are in memory at a time, up to 25 MB each; they are read by turns. Others wait, not decoded."""
LEAST_PROBABILITY = 1e-6
NOT_INSTALLED = "RapidOCR is not installed here: pip install 'diptych[ocr]'."

T = TypeVar("T")


class OcrEngine:
    """An engine that reads text, in one thread of this process.

    engine_args: threads, that RapidOCR may use (THREADS). progress: as VllmEngine's. decoder: decodes images. load:
    replaced in tests.
    """

    memory: Memory | None = None

    def __init__(
        self,
        engine_args: Mapping[str, Any] | None = None,
        *,
        progress: Callable[[str], None] = lambda step: None,
        decoder: MediaDecoder | None = None,
        load: Callable[[int], TextReader] | None = None,
    ) -> None:
        self.engine_args, self.progress = dict(engine_args or {}), progress
        self.decoder = decoder or MediaDecoder()
        self._load = load
        self._reader: TextReader | None = None
        self._thread = ThreadPoolExecutor(1, "ocr")
        self._room = asyncio.Semaphore(AT_ONCE)

    async def start(self) -> None:
        """Load the models and read a blank image. Raises ModelError where RapidOCR is missing, or an argument wrong."""
        threads = self.engine_args.get("threads", THREADS)
        if unknown := self.engine_args.keys() - {"threads"}:
            raise ModelError(f"engine: {min(unknown)} is no argument of RapidOCR here; threads is.", code="load_failed")
        if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
            raise ModelError("engine: threads must be a number of 1 or more.", code="load_failed")
        if self._load is None and not is_installed():
            raise ModelError(NOT_INSTALLED, code="load_failed")
        self.progress("loading RapidOCR")
        try:
            self._reader = await self._run(self._load or TextReader, threads)
            await self._run(self._reader.find, np.zeros((64, 64, 3), np.uint8))
        except (ImportError, OSError, RuntimeError) as error:
            raise ModelError(f"RapidOCR cannot be loaded: {type(error).__name__}.", code="load_failed") from error
        self.memory = Memory(self._reader.weights_bytes(), 0, AT_ONCE)
        self.progress("ready")

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate the image's text, a row at a time, or a list of objects with `bbox_2d`, in pixels, and `label`.

        A token is a row, or a box. Raises BadRequest for a prompt without an image, or with a JSON schema.
        """
        return self._generate(prompt)

    async def check(self) -> None:
        """Raise ModelError before `start`, and after `stop`. A crash ends the whole process."""
        if self._reader is None:
            raise ModelError("The model's engine is not running.", code="engine_dead")

    async def check_adapter(self, adapter: str) -> None:
        raise ModelError("RapidOCR takes no adapters.", code="adapter_refused")

    async def add_adapter(self, adapter: Adapter) -> str:
        raise ModelError("RapidOCR takes no adapters.", code="adapter_refused")

    async def remove_adapter(self, name: str) -> None:
        """Do nothing: it has none."""

    async def stop(self) -> None:
        self._reader = None
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._thread = ThreadPoolExecutor(1, "ocr")  # for another start

    async def sleep(self) -> None:
        """Free the memory of the models, until `wake`."""
        self._reader = None

    async def wake(self) -> None:
        await self.start()

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        await self.check()
        if prompt.image is None:
            raise BadRequest("An image is needed: this model reads the text in it.")
        if prompt.sampling.json_schema is not None:
            raise BadRequest("This model reads text, and follows no schema.", param="response_format")
        async with self._room, contextlib.aclosing(self._texts(prompt, prompt.image)) as texts:
            sent = count = 0
            whole = ""
            finish: FinishReason = "stop"
            async for text, score in texts:
                if count == prompt.sampling.max_tokens:
                    finish = "length"
                    break
                whole, count = whole + text, count + 1
                end = _stopped(whole, prompt.sampling.stop)
                piece = whole[sent : len(whole) if end is None else end]
                sent += len(piece)
                logprob = math.log(max(score, LEAST_PROBABILITY))
                top = ((piece, logprob),) if prompt.sampling.top_logprobs else ()
                tokens = (Token(piece, logprob, top),) if prompt.sampling.logprobs else ()
                yield Piece(piece, tokens, None, 0, count)
                if end is not None:
                    break
            yield Piece("", (), finish, 0, count)

    async def _texts(self, prompt: Prompt, image: Image) -> AsyncGenerator[tuple[str, float], None]:
        """Yield the reply's texts, each with the probability that it is right."""
        assert self._reader is not None
        reader, size = self._reader, (image.width, image.height)
        async with self.decoder.decode_image(image):
            fitted, factor = await self._run(fit_image, image.pixels, to_its_end=True)  # the pixels go with this block
        lines = await self._run(reader.find, fitted)
        del fitted
        if prompt.text == READ:
            async with contextlib.aclosing(self._rows(reader, lines)) as read_rows:
                first = True
                async for row in read_rows:
                    text = " ".join(line.text for line in row)
                    yield ("" if first else "\n") + text, math.prod(line.score for line in row) ** (1 / len(row))
                    first = False
            return
        phrases = None if prompt.text == LINES else json.loads(prompt.text)
        before = "["
        async with contextlib.aclosing(self._rows(reader, lines)) as read_rows:
            async for row in read_rows:
                for label, place in (each for line in row for each in _places(line, phrases)):
                    box = [_edge(edge / factor, size[at % 2]) for at, edge in enumerate(place.box)]
                    yield before + json.dumps({"bbox_2d": box, "label": label}, ensure_ascii=False), place.score
                    before = ", "
        yield ("[]" if before == "[" else "]"), 1.0

    async def _rows(self, reader: TextReader, lines: Sequence[FoundLine]) -> AsyncGenerator[list[TextLine], None]:
        """Yield the rows of the page that have text, in reading order, each as soon as its lines are read."""
        order = rows([line.quad for line in lines])
        waiting = [lines[index] for row in order for index in row]
        read: list[TextLine | None] = []
        for row in order:
            while len(read) < len(row):
                batch, waiting = waiting[:BATCH], waiting[BATCH:]
                read += await self._run(reader.read, batch)
            legible = [line for line in read[: len(row)] if line is not None]
            del read[: len(row)]
            if legible:
                yield legible

    async def _run(self, function: Callable[..., T], *arguments: Any, to_its_end: bool = False) -> T:
        """Call a function in the thread. to_its_end: also where the request is closed meanwhile."""
        job = self._thread.submit(function, *arguments)
        result = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(result)
        except asyncio.CancelledError:
            if not job.cancel() and to_its_end:
                await asyncio.wait([result])
            raise


def _places(line: TextLine, phrases: Sequence[str] | None) -> Iterator[tuple[str, PhraseBox]]:
    """Yield each phrase in a line with its place; where there are no phrases the whole line."""
    if phrases is None:
        xs, ys = zip(*line.quad, strict=True)
        yield line.text, PhraseBox((min(xs), min(ys), max(xs), max(ys)), line.score)
        return
    for phrase in phrases:
        for place in places(line, phrase):
            yield phrase, place


def _stopped(text: str, stops: Sequence[str]) -> int | None:
    """Return where a stop text ends the reply; None where it does not."""
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


def _edge(value: float, most: int) -> int:
    return round(min(max(value, 0), most))
