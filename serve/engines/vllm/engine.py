"""vLLM's AsyncLLM as an Engine: deltas, a log-probability for every token, usage, finish reason, abort.

Only a model's own process imports this module; vLLM itself is imported in `start`, after the environment is set.
"""

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serve import tracing
from serve.engines import adapters, hub
from serve.engines.base import Piece, Prompt, Sampling
from serve.engines.once import Once
from serve.engines.vllm import config_check, multimodal, processes
from serve.engines.vllm.arguments import arguments, environment
from serve.engines.vllm.last_words import LastWords
from serve.engines.vllm.stall import Stall
from serve.engines.vllm.translate import FINISH, Speller, dead, refused, sampling_params, too_long
from serve.engines.weighted_semaphore import WeightedSemaphore
from serve.errors import BadRequest, ModelError
from serve.media import reading
from serve.media.geometry import Padded
from serve.media.image import Image
from serve.media.reading import Reading
from serve.media.video import Video
from serve.request_id import REQUEST_ID

log = logging.getLogger(__name__)

# What vLLM, transformers and torch raise for a checkpoint or an argument that they cannot use.
FAULTS = (RuntimeError, ValueError, OSError, ImportError, LookupError, TypeError, AttributeError, AssertionError)

AT_ONCE = 2
"""Large pictures and films that are being prepared: while vLLM processes one, in its single thread, the next is made
ready. Each takes up to 120 MB until it is processed."""
_PREPARING = ThreadPoolExecutor(AT_ONCE, "prepare")
ALTERNATIVES_A_STEP = 400
"""Alternatives of tokens that one step of the engine may bring, since the replica's event loop unpacks each of them.
Replies that want more wait for others to end."""


class VllmEngine:
    """One checkpoint in one vLLM engine.

    checkpoint: a local folder or a hub id, with `revision`; gated: whether its licence must be accepted on the hub.
    expect: what its config.json must say, or it is not loaded (config_check).
    family_args: vLLM arguments that the family dictates; engine_args: the deployment's (tensor_parallel_size,
    gpu_memory_utilization, max_num_seqs ...), which win. prepare: what a picture needs before the processor sees it.
    progress: called from another thread with a few words on what is going on while it starts. adapters: LoRAs that
    speak when a prompt names them; one that cannot be used leaves the others and the checkpoint as they are.
    stat_loggers: gives vLLM's StatLogger classes to count with, once vLLM may be imported; without, nothing is counted.
    reader: decodes pictures that come as files.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        gated: bool = False,
        expect: Mapping[str, Any] | None = None,
        family_args: Mapping[str, Any] | None = None,
        engine_args: Mapping[str, Any] | None = None,
        prefix_lm: bool = False,
        adapters: Sequence[adapters.Adapter] = (),
        prepare: Callable[[Image], Image] = lambda image: image,
        progress: Callable[[str], None] = lambda words: None,
        stat_loggers: Callable[[], list[Any]] | None = None,
        reader: Reading | None = None,
    ) -> None:
        self.reading = reader or Reading()
        self.stat_loggers = stat_loggers
        self.checkpoint, self.revision, self.gated = checkpoint, revision, gated
        self.expect = dict(expect or {})
        self.family_args, self.engine_args = dict(family_args or {}), dict(engine_args or {})
        self.prefix_lm = prefix_lm
        self.adapters, self.prepare, self.progress = tuple(adapters), prepare, progress
        self._llm: Any = None
        self._numbers = itertools.count()
        self._loras: dict[str, Any] = {}
        self._unfit: dict[str, ModelError] = {}
        self._marks: dict[str, str] = {}
        self._takes: frozenset[str] = frozenset()
        self._stall = Stall(self._processes)
        self._fit_to: multimodal.Fit | None = None
        self._pictures: Once[Mapping[str, Any]] = Once()
        self._seats = asyncio.Semaphore(AT_ONCE)
        self._alternatives = WeightedSemaphore(ALTERNATIVES_A_STEP)

    async def start(self) -> None:
        """Download what is missing, load, and answer once. Raises ModelError with one clear sentence."""
        self._llm = await asyncio.to_thread(self._start)
        self.progress("warming up")
        try:
            await self._warm_up()
        except ModelError:
            await self.stop()
            raise
        for name in list(self._loras):
            await self._load_lora(name)
        self.progress("ready")

    async def adopt(self, adapter: str) -> None:
        """Raises ModelError when this adapter cannot speak. Ask once the engine has started."""
        await self.check()
        if adapter not in self._loras:
            raise self._unfit.get(adapter) or ModelError(f"There is no adapter {adapter} here.", code="adapter_missing")

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Speak. Closing or cancelling the generator aborts the request in vLLM."""
        return self._generate(prompt)

    def knows(self, image: Image) -> bool:
        """Whether vLLM still has this very file as it was prepared for an earlier question."""
        cache = None if self._llm is None else self._llm.renderer.mm_processor_cache
        return cache is not None and (name := multimodal.name(image)) is not None and bool(cache.is_cached_item(name))

    async def check(self) -> None:
        """Raises ModelError when the engine is dead or was never started."""
        if self._llm is None:
            raise ModelError("The model's engine is not running.", code="engine_dead")
        if self._stall.look():
            self._stall.kill()
            raise ModelError("The model's engine stood still; it has to be started again.", code="engine_dead")
        if self._llm.errored:
            raise dead()

    async def stop(self) -> None:
        """End vLLM's processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
            llm.shutdown = lambda: None  # __del__ calls it again, and stumbles when the interpreter is ending

    def _start(self) -> Any:
        folder = hub.locate(self.checkpoint, self.revision, gated=self.gated, progress=self.progress)
        fitted = self._fit(folder)
        self.progress("importing vLLM")
        fork = processes.may_fork()
        environment(self.prefix_lm)
        config_check.check(folder, self.expect)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        if current_platform.is_unspecified():
            said = "The installed vLLM is built for a GPU and finds none here: is its driver seen (nvidia-smi)?"
            raise ModelError(f"{said} `make serve DEVICE=cpu` sets up the other.", code="load_failed")
        cpu = current_platform.is_cpu()
        chosen = arguments(
            folder,
            self.family_args,
            self.engine_args,
            is_prefix_lm=self.prefix_lm,
            cpu=cpu,
            adapters=fitted,
        )
        with LastWords() as words:
            try:
                # What is not chosen goes by the card as in vLLM's own server; without a context it would be the same
                # for all, a quarter of what an H100 gets.
                config = AsyncEngineArgs(**chosen).create_engine_config(UsageContext.OPENAI_API_SERVER)
                processes.start_by(fork and cpu)
                self.progress("loading weights")
                # its spans are made of what it counts
                counts = self.stat_loggers is not None or bool(chosen.get("otlp_traces_endpoint"))
                llm = AsyncLLM.from_vllm_config(
                    config,
                    stat_loggers=self.stat_loggers() if self.stat_loggers is not None else None,
                    disable_log_stats=not counts and bool(chosen.get("disable_log_stats")),
                )
            except FAULTS as error:
                raise ModelError(
                    f"{folder.name} could not be loaded: {words.reason(error)}", code="load_failed"
                ) from error
        self._loras = {one.name: LoRARequest(one.name, i, str(one.folder)) for i, one in enumerate(fitted, 1)}
        _name_every_id(llm.renderer.tokenizer)
        self._marks = _marks(config.model_config.hf_config, llm.renderer.tokenizer)
        self._fit_to = _fit(llm)
        limits = llm.renderer.mm_processor.info.allowed_mm_limits if llm.renderer.mm_processor is not None else {}
        self._takes = frozenset(kind for kind, limit in limits.items() if limit > 0)
        return llm

    def _fit(self, folder: Path) -> list[adapters.Fitted]:
        """The adapters that belong to the checkpoint; why the others do not is kept for `adopt`."""
        fitted = []
        for adapter in self.adapters:
            try:
                fitted.append(adapters.fit(adapter, folder, progress=self.progress))
            except ModelError as error:
                self._unfit[adapter.name] = error
        return fitted

    async def _load_lora(self, name: str) -> None:
        """Into vLLM now, and not with the first prompt that names it, where a failure would end the engine."""
        failure: Any = (await asyncio.gather(self._llm.add_lora(self._loras[name]), return_exceptions=True))[0]
        if isinstance(failure, BaseException):  # a plain Exception, whatever the worker raised
            self._unfit[name] = ModelError(f"The adapter {name} could not be loaded: {failure}", code="load_failed")
            lora = self._loras.pop(name)
            await self.check()
            await self._llm.remove_lora(lora.lora_int_id)

    async def _warm_up(self) -> None:
        """One short answer about a grey square, so that no caller pays for what is done the first time."""
        grey = Image(np.full((64, 64, 3), 128, np.uint8))
        film = Video(np.stack([grey.pixels] * 2), (0.0, 1.0), 2.0) if self._takes == {"video"} else None
        image = grey if film is None and (self.prefix_lm or "image" in self._marks) else None
        mark = self._marks.get("image" if film is None else "video", "")
        text = "a" if self.prefix_lm else f"{mark}\na"
        with contextlib.suppress(BadRequest):  # a family that wants its picture announced in another way
            async for _ in self._generate(Prompt(text, image, Sampling(max_tokens=2), film)):
                pass

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        await self.check()
        if prompt.adapter is not None:
            await self.adopt(prompt.adapter)
        shown = None if prompt.image is None and prompt.video is None else "image" if prompt.video is None else "video"
        for kind, mark in self._marks.items():
            allowed = 1 if kind == shown and not self.prefix_lm else 0  # a prefix LM's processor adds its own
            if prompt.text.count(mark) > allowed:
                raise BadRequest(f"The text must not contain {mark}.", param="question")
        # before its picture goes through vLLM's cache, whose two ends must see their requests in the same order
        alternatives = self._alternatives.take(prompt.sampling.top_logprobs if prompt.sampling.logprobs else 0)
        async with alternatives, contextlib.aclosing(self._stream(prompt)) as pieces:
            async for piece in pieces:
                yield piece

    def _processes(self) -> list[int]:
        """vLLM's engine, where it is a process of this machine."""
        manager = self._llm.engine_core.resources.engine_manager
        return [process.pid for process in getattr(manager, "processes", [])]

    async def _inputs(self, prompt: Prompt) -> Any:
        """Return the prompt as vLLM's engine takes it: its tokens, and the picture as the model sees it.

        Prompts about one picture that come together (a phrase each, `n` replies) have it decoded and prepared once, and
        processed once where vLLM's cache holds it.
        """
        image, wanted = prompt.image, {"prompt": prompt.text, **multimodal.salted()}
        if image is None:
            async with self._shown(prompt) as film:
                return await self._render({**wanted, **film})
        await reading.name(image)
        if (inputs := await self._known(wanted, image)) is not None:
            return inputs
        async with (
            self._pictures.share(multimodal.name(image) or id(image), lambda: self._shown(prompt)) as picture,
            picture.turn,
        ):
            if (inputs := await self._known(wanted, image)) is None:  # nobody had it processed in the meantime
                inputs = await self._render({**wanted, **await picture.value(), **multimodal.uuids(image)})
            return inputs

    async def _known(self, wanted: Mapping[str, Any], image: Image) -> Any:
        """Return the inputs with a picture that is in vLLM's cache; None where it is not."""
        if self.knows(image):
            with contextlib.suppress(ValueError):  # it was put out of the cache just now
                return await self._render({**wanted, **multimodal.named(image)})
        return None

    async def _render(self, wanted: Mapping[str, Any]) -> Any:
        return (await self._llm.renderer.render_cmpl_async([wanted]))[0]

    @contextlib.asynccontextmanager
    async def _shown(self, prompt: Prompt) -> AsyncIterator[Mapping[str, Any]]:
        """Decode and prepare a prompt's picture or film, off the event loop where that takes long."""
        async with contextlib.AsyncExitStack() as looking:
            if prompt.image is not None:
                picture = prompt.image.inner if isinstance(prompt.image, Padded) else prompt.image
                await looking.enter_async_context(self.reading.read(picture))
                prompt = replace(prompt, image=self.prepare(prompt.image))
            if multimodal.slow(prompt):
                await looking.enter_async_context(self._seats)
                loop = asyncio.get_running_loop()
                made = await loop.run_in_executor(_PREPARING, multimodal.shown, prompt, self._fit_to)
                if prompt.image is not None and self._fit_to is not None and self._fit_to.takes(prompt.image):
                    await looking.aclose()  # its pixels are no longer needed: what was made of them is far smaller
                yield made
            else:
                yield multimodal.shown(prompt, self._fit_to)

    async def _stream(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm = self._llm
        try:
            params = sampling_params(prompt.sampling, whole=prompt.whole)
            inputs = await self._inputs(prompt)
            prompt_tokens = len(inputs["prompt_token_ids"])
            context = llm.model_config.max_model_len
            if prompt_tokens >= context:
                raise too_long(context, prompt_tokens)
            said = 0
            speller = Speller(prompt.sampling, whole=prompt.whole)
            lora = None if prompt.adapter is None else self._loras[prompt.adapter]
            name = f"{REQUEST_ID.get() or 'diptych'}-{next(self._numbers)}"  # one request may be several prompts
            trace = tracing.traceparent()
            spoken_by = llm.generate(
                inputs,
                params,
                name,
                lora_request=lora,
                priority=int(prompt.batch),
                trace_headers={"traceparent": trace} if trace else None,
            )
            watched = self._stall.watched(spoken_by)
            async with contextlib.aclosing(spoken_by), contextlib.aclosing(watched) as outputs:
                async for output in outputs:
                    spoken = output.outputs[0]
                    said += len(spoken.token_ids)
                    if spoken.finish_reason == "error":
                        log.error("request %s failed in the engine", REQUEST_ID.get())
                        raise ModelError("The model's engine failed on this request.", code="engine_error")
                    yield Piece(
                        spoken.text,
                        speller.tokens(spoken),
                        FINISH[spoken.finish_reason] if spoken.finish_reason else None,
                        prompt_tokens,
                        said,
                    )
        except VLLMClientError as error:
            raise refused(error, llm.model_config.max_model_len) from error
        except EngineDeadError as error:
            raise dead() from error
        except EngineGenerateError as error:
            log.error("request %s failed in the engine", REQUEST_ID.get(), exc_info=error)
            raise dead() if llm.errored else ModelError("The model failed on this request.") from error
        except (ValueError, TypeError) as error:  # the processor's own complaint about this text and picture
            log.warning("request %s was refused by the processor: %s", REQUEST_ID.get(), type(error).__name__)
            raise BadRequest("The model's processor cannot read this prompt.", code="invalid_prompt") from error


def _fit(llm: Any) -> multimodal.Fit | None:
    """Return the one size that the model's processor brings pictures to, unless a deployment has its own mind."""
    processor, config = llm.renderer.mm_processor, llm.model_config.multimodal_config
    if processor is None or config is None or config.mm_processor_kwargs:
        return None
    return multimodal.Fit.of(getattr(processor.info.get_hf_processor(), "image_processor", None))


def _marks(config: Any, tokenizer: Any) -> dict[str, str]:
    """What stands for a picture and for a film in a prompt: {"image": "<image>", "video": "<video>"}."""
    found: dict[str, str] = {}
    for kind in ("image", "video"):
        token = getattr(config, f"{kind}_token_index", None) or getattr(config, f"{kind}_token_id", None)
        if token is not None:
            found[kind] = tokenizer.convert_ids_to_tokens(token)
    return found


def _name_every_id(tokenizer: Any) -> None:
    """Give every id a name, and decode each id once.

    Checkpoints have room for more tokens than the tokenizer knows (LLaVA-1.5: 32,064 and 32,002). The name of such an
    id is None, and vLLM 0.32 stops for good where one is drawn or only ranked: here it is "". vLLM also decodes each
    ranked token by itself, on the replica's event loop: with 48 replies of 20 alternatives a token that was 70 % of the
    loop's time, and a small picture asked beside them came 4.4 s late (0.6 s now).
    """
    names, decode = tokenizer.convert_ids_to_tokens, tokenizer.decode
    spelled: dict[int, str] = {}

    def named(ids: Any, *more: Any, **options: Any) -> Any:
        known = names(ids, *more, **options)
        return [name or "" for name in known] if isinstance(known, list) else known

    def decoded(ids: Any, *more: Any, **options: Any) -> Any:
        if more or options or not isinstance(ids, list) or len(ids) != 1:
            return decode(ids, *more, **options)
        if ids[0] not in spelled:
            spelled[ids[0]] = decode(ids)
        return spelled[ids[0]]

    tokenizer.convert_ids_to_tokens, tokenizer.decode = named, decoded
