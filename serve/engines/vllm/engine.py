"""vLLM's AsyncLLM as an Engine: deltas, a log-probability for every token, usage, finish reason, abort.

Only a model's process imports this module. vLLM itself is imported in `start`, after the environment is set.
"""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from serve import tracing
from serve.engines import adapters, hub, module_names, object_store
from serve.engines.base import Memory, PictureLimits, Piece, Prompt, Sampling, Tools
from serve.engines.chat_settings import ChatSettings
from serve.engines.checkpoint_facts import CheckpointFacts, read_facts
from serve.engines.description import Description, read
from serve.engines.plugins import weight_reads
from serve.engines.remote.chat_request import IMAGE_PART
from serve.engines.shared_context import SharedContexts
from serve.engines.vllm import config_check, multimodal, processes, refusals
from serve.engines.vllm.arguments import arguments, environment
from serve.engines.vllm.chat_renderer import ChatRenderer
from serve.engines.vllm.fixed_images import FixedImages
from serve.engines.vllm.footprint import awake_part, footprint, requests_at_once, settings
from serve.engines.vllm.stderr_tail import StderrTail
from serve.engines.vllm.tool_calls import VllmToolReader
from serve.engines.vllm.translate import (
    FINISH,
    TokenAligner,
    bad_request,
    context_exceeded,
    engine_died,
    sampling_params,
)
from serve.engines.vllm.watchdog import Watchdog
from serve.engines.weighted_semaphore import WeightedSemaphore
from serve.errors import BadRequest, ModelError
from serve.media import decoding
from serve.media.decoding import MediaDecoder
from serve.media.geometry import Padded
from serve.media.image import Image
from serve.media.video import Video
from serve.tracing import REQUEST_ID

log = logging.getLogger(__name__)

# Raised by vLLM, transformers and torch for a checkpoint or an argument that they cannot use.
FAULTS = (RuntimeError, ValueError, OSError, ImportError, LookupError, TypeError, AttributeError, AssertionError)

SLEEP = {"enable_sleep_mode": True, "sleep_mode_offload_cudagraph": True}
"""vLLM arguments of an engine that sleeps on a GPU: its CUDA graphs, too, leave it."""
NEWER_NAMES = (module_names.EXTENSION, weight_reads.WITH_NEWER_NAMES)
"""Extensions of vLLM's worker that read modules as transformers 5 names them."""
AT_ONCE = 2
"""Large images and videos prepared at a time: while vLLM processes one, in its single thread, the next is prepared.
Each takes up to 120 MB until it is processed."""
PROMPT_END = 80
"""Characters of a written prompt that pieces carry: more than any mark that begins reasoning has."""
KILLED_S = 5.0
"""Seconds in which a process that was killed ends, on a busy machine too."""
COPIED = 2**20
"""Bytes below which a picture is copied on its way to the engine. pyzmq passes on a reference from 64 KiB on, whose
release wakes a thread of its own: 6 % of what a replica does for a picture of 224 pixels, whose copy takes 30 us."""
_PREPARING = ThreadPoolExecutor(AT_ONCE, "prepare")
ALTERNATIVES_A_STEP = 400
"""Alternatives of tokens that one step of the engine may return, since the replica's event loop unpacks each of them.
Further requests for alternatives wait for others to end."""


class VllmEngine:
    """A vLLM engine with one checkpoint.

    checkpoint: a local folder, a hub id with `revision`, or a URI as s3://bucket/path. gated: whether its licence must
    be accepted on the hub. expect: required values of its config.json (config_check). family_args: vLLM arguments that
    the model family needs. engine_args: the deployment's (tensor_parallel_size, gpu_memory_utilization, max_num_seqs
    ...), which override them. prepare: transforms an image before the processor gets it. progress: called from another
    thread with a short text for each step of the start. adapters: LoRA adapters to serve; one that cannot be used
    leaves the others and the checkpoint unaffected. further_adapters: how many more may be loaded while it runs, of
    further_rank at most. stat_loggers: returns vLLM's StatLogger classes once vLLM is
    imported; without, vLLM keeps no statistics. decoder: decodes undecoded images. share: the part of a GPU that is
    this engine's. sleep_level: of `sleep`, vLLM's 1 or 2; None for an engine that never sleeps. sleepers: engines that
    sleep on its GPU while it is awake. chat: prompts are messages as JSON, for the checkpoint's
    chat template; such an engine serves any architecture, and so it looks at more before it counts as started: what its
    files say (refusals), which tensors vLLM read, and a first picture.
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
        further_adapters: int = 0,
        further_rank: int = 1,
        prepare: Callable[[Image], Image] = lambda image: image,
        progress: Callable[[str], None] = lambda step: None,
        stat_loggers: Callable[[], list[Any]] | None = None,
        decoder: MediaDecoder | None = None,
        share: float = 1.0,
        sleep_level: int | None = None,
        sleepers: int = 0,
        chat: ChatSettings | None = None,
    ) -> None:
        self.decoder = decoder or MediaDecoder()
        self.share, self.sleep_level, self.sleepers = share, sleep_level, sleepers
        self.chat = chat
        self.stat_loggers = stat_loggers
        self.checkpoint, self.revision, self.gated = checkpoint, revision, gated
        self.expect = dict(expect or {})
        self.family_args, self.engine_args = dict(family_args or {}), dict(engine_args or {})
        self.prefix_lm = prefix_lm
        self.adapters, self.prepare, self.progress = tuple(adapters), prepare, progress
        self.further_adapters, self.further_rank = further_adapters, further_rank
        self.memory: Memory | None = None
        self.picture_limits: PictureLimits | None = None
        self._llm: Any = None
        self._numbers = itertools.count()
        self._loras: dict[str, Any] = {}
        self._unfit: dict[str, ModelError] = {}
        self._lora_numbers = itertools.count(len(self.adapters) + 1)
        self._folder = Path()
        self._adapts_tower = self._knows_newer_names = False
        self._placeholders: dict[str, str] = {}
        self._takes: frozenset[str] = frozenset()
        self._watchdog = Watchdog(self._processes)
        self._resizer: multimodal.Resizer | None = None
        self._fixed_images: FixedImages | None = None
        self._chat_renderer: ChatRenderer | None = None
        self._cache_turn = asyncio.Lock()
        """Held while vLLM's cache of images is used: its threads and `FixedImages` must not use it at once."""
        self._images: SharedContexts[Mapping[str, Any]] = SharedContexts()
        self._preparing_slots = asyncio.Semaphore(AT_ONCE)
        self._alternatives = WeightedSemaphore(ALTERNATIVES_A_STEP)

    async def start(self) -> None:
        """Download what is missing, load the model, and answer one prompt.

        Raises ModelError with one clear sentence.
        """
        self._llm = await asyncio.to_thread(self._start)
        try:
            if self.chat is not None:
                await self._check_weights(self.chat)
            self.progress("warming up")
            await (self._warm_up() if self.chat is None else self._ask_a_picture())
        except ModelError:
            await self.stop()
            raise
        for name in list(self._loras):
            try:
                await self._load_lora(name)
            except ModelError as error:
                await self.check()
                self._unfit[name] = error
        self.progress("ready")

    async def check_adapter(self, adapter: str) -> None:
        """Raise ModelError when this adapter cannot be used. Call it once the engine has started."""
        await self.check()
        if adapter not in self._loras:
            raise self._unfit.get(adapter) or ModelError(f"There is no adapter {adapter} here.", code="adapter_missing")

    async def add_adapter(self, adapter: adapters.Adapter) -> str:
        """Load an adapter while the engine runs. Return its name in prompts, which no other one has had.

        vLLM's prefix cache goes by that name, so one of the same name and path with other weights shares nothing with
        this one. Raises ModelError where it cannot be used; then nothing of it is left.
        """
        from vllm.lora.request import LoRARequest

        await self.check()
        fitted = await asyncio.to_thread(adapters.fit, adapter, self._folder)
        if fitted.rank > self.further_rank:
            why = f"its rank {fitted.rank} is larger than its base's max_lora_rank, {self.further_rank}."
        elif fitted.tower and not self._adapts_tower:
            why = "it changes the vision tower, too: give its base `engine: {enable_tower_connector_lora: true}`."
        elif fitted.newer and not self._knows_newer_names:
            why = "its modules are named as transformers 5 does, and its base's are not read so."
        else:
            number = next(self._lora_numbers)
            name = f"{adapter.name}#{number}"
            self._loras[name] = LoRARequest(name, number, str(fitted.folder))
            await self._load_lora(name)
            return name
        raise ModelError(f"The adapter {adapter.name} cannot be used: {why}", code="adapter_refused")

    async def remove_adapter(self, name: str) -> None:
        """Unload an adapter by its name in prompts. No request with it may run."""
        lora = self._loras.pop(name)
        if self._llm is not None and not self._llm.errored:
            await self._llm.remove_lora(lora.lora_int_id)

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate a reply. Closing or cancelling the generator aborts the request in vLLM."""
        return self._generate(prompt)

    def tool_reader(self, tools: Tools, whole: bool) -> VllmToolReader:
        """Return a reader of the calls in a reply. whole: the reply is not streamed."""
        return VllmToolReader(self._llm.renderer.tokenizer, tools, whole)

    def has_cached(self, image: Image) -> bool:
        """Return whether vLLM's cache holds the processed image of the same file."""
        cache = None if self._llm is None else self._llm.renderer.mm_processor_cache
        return (
            cache is not None and (key := multimodal.cache_key(image)) is not None and bool(cache.is_cached_item(key))
        )

    async def check(self) -> None:
        """Raise ModelError when the engine is dead, stalled, or was never started."""
        if self._llm is None:
            raise ModelError("The model's engine is not running.", code="engine_dead")
        if self._watchdog.is_stalled():
            self._watchdog.kill()
            raise ModelError("The model's engine stood still; it has to be started again.", code="engine_dead")
        if self._llm.errored:
            raise engine_died()

    async def stop(self) -> None:
        """End vLLM's processes."""
        if self._llm is not None:
            processes = self._engine_processes()
            llm, self._llm = self._llm, None
            await asyncio.to_thread(llm.shutdown)
            llm.shutdown = lambda: None  # __del__ calls it again, and raises while the interpreter is ending
            # vLLM kills one that is slow to end and does not wait for it: its memory is not free yet
            for process in processes:
                await asyncio.to_thread(process.join, KILLED_S)

    async def sleep(self) -> None:
        """Free the GPU until `wake`, by vLLM's sleep mode; where there is none, end the engine. No request may run.

        Raises ModelError where that failed.
        """
        if self._llm is None or not self._has_sleep_mode():
            await self.stop()
            return
        try:
            await self._llm.sleep(self.sleep_level, mode="wait")
        except Exception as error:  # any fault of vLLM's process comes as a plain one
            raise ModelError(f"The engine could not be put to sleep: {error}", code="engine_dead") from error

    async def wake(self) -> None:
        """Bring back what `sleep` freed, or start the engine again. Raises ModelError where that failed."""
        if self._llm is None:
            await self.start()
            return
        try:
            if self.sleep_level == 1:
                await self._llm.wake_up()
            else:  # the weights are read into their place before memory is given to keys and values
                await self._llm.wake_up(["weights"])
                await self._llm.collective_rpc("reload_weights")
                await self._llm.wake_up(["kv_cache"])
        except Exception as error:
            raise ModelError(f"The engine could not be woken: {error}", code="engine_dead") from error

    def _has_sleep_mode(self) -> bool:
        return bool(self._llm.vllm_config.model_config.enable_sleep_mode)

    def _start(self) -> Any:
        folder = hub.locate(self.checkpoint, self.revision, gated=self.gated, progress=self.progress)
        if self.further_adapters:
            adapters.check_architecture(folder)
        checked = self._check_adapters(folder)
        self.progress("importing vLLM")
        fork = processes.may_fork()
        environment(self.prefix_lm)
        config_check.check_config(folder, self.expect)
        with processes.importing():
            from vllm.config.reasoning import ReasoningConfig
            from vllm.engine.arg_utils import AsyncEngineArgs
            from vllm.lora.request import LoRARequest
            from vllm.platforms import current_platform
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.async_llm import AsyncLLM

        if current_platform.is_unspecified():
            message = "The installed vLLM is built for a GPU and finds none here: is its driver seen (nvidia-smi)?"
            raise ModelError(f"{message} `make serve DEVICE=cpu` sets up the other.", code="load_failed")
        streamed = object_store.engine_arguments(self.checkpoint) if object_store.is_uri(self.checkpoint) else {}
        cpu = current_platform.is_cpu()
        if cpu:
            processes.inspect_here()
        gpu_bytes = None if cpu else int(current_platform.get_device_total_memory())
        sleeps = self.sleep_level is not None and current_platform.is_sleep_mode_available()
        facts = read_facts(folder)
        if self.chat is not None:
            self._refuse(facts, cpu)
            self.picture_limits = multimodal.picture_limits(facts, self.engine_args.get("mm_processor_kwargs"))
        chosen = arguments(
            folder,
            self.family_args,
            {**streamed, **(SLEEP if sleeps else {}), **self.engine_args},
            is_prefix_lm=self.prefix_lm,
            cpu=cpu,
            adapters=checked,
            further_adapters=self.further_adapters,
            further_rank=self.further_rank,
            share=self.share * awake_part(gpu_bytes, self.sleepers),
            gpu_bytes=gpu_bytes or 0,
            capability=0 if cpu else _capability(current_platform),
            chat=self.chat is not None,
        )
        if "reasoning_config" in chosen:
            chosen["reasoning_config"] = ReasoningConfig(**chosen["reasoning_config"])
        with StderrTail() as stderr:
            try:
                # With this context vLLM chooses defaults by the GPU as its own server does; without it all GPUs get the
                # same ones, a quarter of an H100's.
                config = AsyncEngineArgs(**chosen).create_engine_config(UsageContext.OPENAI_API_SERVER)
                processes.set_start_method(fork and cpu, processes.ENGINE_NICENESS if cpu else 0)
                self.progress("loading weights")
                # vLLM makes its spans from its statistics
                counts = self.stat_loggers is not None or bool(chosen.get("otlp_traces_endpoint"))
                llm = AsyncLLM.from_vllm_config(
                    config,
                    stat_loggers=self.stat_loggers() if self.stat_loggers is not None else None,
                    disable_log_stats=not counts and bool(chosen.get("disable_log_stats")),
                )
            except FAULTS as error:
                raise ModelError(
                    f"{folder.name} could not be loaded: {stderr.reason(error)}", code="load_failed"
                ) from error
        self._loras = {
            adapter.name: LoRARequest(adapter.name, i, str(adapter.folder)) for i, adapter in enumerate(checked, 1)
        }
        self._folder = folder
        self._adapts_tower = bool(chosen.get("enable_tower_connector_lora"))
        self._knows_newer_names = chosen.get("worker_extension_cls") in NEWER_NAMES
        self.memory = _memory(read(folder), chosen, gpu_bytes, config.cache_config)
        _patch_tokenizer(llm.renderer.tokenizer)
        self._placeholders = _placeholders(config.model_config.hf_config, llm.renderer.tokenizer)
        _copy_small_pictures(llm.engine_core.input_socket)
        self._resizer = None if self.chat is not None else _find_resizer(llm)
        limits = llm.renderer.mm_processor.info.allowed_mm_limits if llm.renderer.mm_processor is not None else {}
        self._takes = frozenset(kind for kind, limit in limits.items() if limit > 0)
        if self.chat is None:
            self._fixed_images = FixedImages.of(llm, self._resizer)
        else:
            self._chat_renderer = ChatRenderer(llm.renderer, self.chat, facts)
        return llm

    def _refuse(self, facts: CheckpointFacts, cpu: bool) -> None:
        """Raise ModelError where the checkpoint's files say that it would be served wrongly."""
        assert self.chat is not None
        why = refusals.why_refused(
            facts,
            self.engine_args,
            cpu=cpu,
            template=self.chat.template is not None,
            native=refusals.is_native(facts.model_type),
        )
        if why is not None:
            raise ModelError(why, code="checkpoint_refused")

    async def _check_weights(self, chat: ChatSettings) -> None:
        """Log the class that vLLM chose. Raises ModelError where it takes no pictures, or did not read every tensor."""
        reports = await self._llm.collective_rpc(weight_reads.METHOD)
        weights = weight_reads.account(reports, chat.unused)
        if "image" not in self._takes:
            why = f"vLLM's {weights.model_class} takes no pictures, so it would read questions alone."
            raise ModelError(why, code="checkpoint_refused")
        if (fault := weights.fault()) is not None:
            raise ModelError(fault, code="weights_not_read")
        origin = ": transformers' own code, as vLLM has no class for it" if weights.by_transformers else ""
        log.info("%s is served by vLLM's %s%s", self.checkpoint, weights.model_class, origin)
        self.progress(f"served by vLLM's {weights.model_class}{origin}")

    async def _ask_a_picture(self) -> None:
        """Ask about a grey picture. Raises ModelError where the engine cannot answer: then it never could."""
        grey = Image(np.full((96, 128, 3), 128, np.uint8))
        content = [IMAGE_PART, {"type": "text", "text": "Describe the image."}]
        messages = json.dumps([{"role": "user", "content": content}])
        try:
            async for _ in self._generate(Prompt(messages, grey, Sampling(max_tokens=2))):
                pass
        except (BadRequest, ModelError) as error:
            why = f"It was loaded and cannot answer about a picture: {error.message}"
            raise ModelError(why, code="first_picture_failed") from error

    def _check_adapters(self, folder: Path) -> list[adapters.CheckedAdapter]:
        """Return the adapters that fit the checkpoint; the errors of the others are kept for `check_adapter`."""
        checked = []
        for adapter in self.adapters:
            try:
                checked.append(adapters.fit(adapter, folder, progress=self.progress))
            except ModelError as error:
                self._unfit[adapter.name] = error
        return checked

    async def _load_lora(self, name: str) -> None:
        """Load an adapter into vLLM now, since a failure with the first prompt that names it would end the engine.

        Raises ModelError where that fails.
        """
        failure: Any = (await asyncio.gather(self._llm.add_lora(self._loras[name]), return_exceptions=True))[0]
        if isinstance(failure, BaseException):  # a plain Exception for any error of the worker
            lora = self._loras.pop(name)
            await self.check()
            await self._llm.remove_lora(lora.lora_int_id)
            why = " ".join(str(failure).split())
            raise ModelError(f"The adapter {name.partition('#')[0]} could not be loaded: {why}", code="load_failed")

    async def _warm_up(self) -> None:
        """Answer one short prompt about a grey square, which does the work that only the first request needs."""
        grey = Image(np.full((64, 64, 3), 128, np.uint8))
        video = Video(np.stack([grey.pixels] * 2), (0.0, 1.0), 2.0) if self._takes == {"video"} else None
        image = grey if video is None and (self.prefix_lm or "image" in self._placeholders) else None
        placeholder = self._placeholders.get("image" if video is None else "video", "")
        text = "a" if self.prefix_lm else f"{placeholder}\na"
        with contextlib.suppress(BadRequest):  # a family with another prompt format
            async for _ in self._generate(Prompt(text, image, Sampling(max_tokens=2), video)):
                pass

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        await self.check()
        if prompt.adapter is not None:
            await self.check_adapter(prompt.adapter)
        given = None if prompt.image is None and prompt.video is None else "image" if prompt.video is None else "video"
        for kind, placeholder in self._placeholders.items() if self.chat is None else ():
            allowed = 1 if kind == given and not self.prefix_lm else 0  # a prefix LM's processor adds its own
            if prompt.text.count(placeholder) > allowed:
                raise BadRequest(f"The text must not contain {placeholder}.", param="question")
        # before the image enters vLLM's cache, whose two ends must get requests in the same order
        alternatives = self._alternatives.take(prompt.sampling.top_logprobs if prompt.sampling.logprobs else 0)
        async with alternatives, contextlib.aclosing(self._stream(prompt)) as pieces:
            async for piece in pieces:
                yield piece

    def _processes(self) -> list[int]:
        """Return the pids of vLLM's engine processes on this machine."""
        return [process.pid for process in self._engine_processes()]

    def _engine_processes(self) -> Sequence[Any]:
        manager = self._llm.engine_core.resources.engine_manager
        return getattr(manager, "processes", [])

    async def _inputs(self, prompt: Prompt) -> Any:
        """Return the prompt as vLLM's engine input: token ids and the processed image or video.

        Concurrent prompts about one image (a phrase each, `n` replies) have it decoded and prepared once, and processed
        once where it fits vLLM's cache.
        """
        image = prompt.image
        if image is None:
            async with self._multimodal_input(prompt) as video:
                return await self._render(prompt, video)
        await decoding.compute_digest(image)
        if (inputs := await self._cached_inputs(prompt, image)) is not None:
            return inputs
        if self._fixed_images is not None and not image.undecoded_pixels:
            quick = replace(prompt, image=self.prepare(image))
            if self._fixed_images.applies_to(quick) and not multimodal.is_slow(quick):
                # done at once, so that concurrent prompts find it in the cache
                return await self._render(prompt, {**self._prepared(quick), **multimodal.uuids(image)})
        key = multimodal.cache_key(image) or id(image)
        async with self._images.share(key, lambda: self._multimodal_input(prompt)) as shared, shared.turn:
            if (inputs := await self._cached_inputs(prompt, image)) is not None:  # processed in the meantime
                return inputs
            return await self._render(prompt, {**await shared.value(), **multimodal.uuids(image)})

    async def _cached_inputs(self, prompt: Prompt, image: Image) -> Any:
        """Return the engine input with an image from vLLM's cache; None where it is not there."""
        if self.has_cached(image):
            with contextlib.suppress(ValueError):  # it was evicted just now
                return await self._render(prompt, multimodal.cached_input(image))
        return None

    async def _render(self, prompt: Prompt, media: Mapping[str, Any]) -> Any:
        """Return the engine input of a prompt's text with its image or video, in the form of `_prepared`."""
        fixed = self._fixed_images
        if fixed is None:
            return await self._render_by_vllm(prompt, media)
        async with self._cache_turn:
            if fixed.takes(prompt.text, media):
                return fixed.inputs(prompt.text, media)
            inputs = await self._render_by_vllm(prompt, media)
            fixed.learn(inputs)
            return inputs

    async def _render_by_vllm(self, prompt: Prompt, media: Mapping[str, Any]) -> Any:
        if self._chat_renderer is not None:
            return await self._chat_renderer.inputs(prompt.text, media, prompt.reasoning, prompt.tools)
        text = {"prompt": prompt.text, **multimodal.cache_salt()}
        return (await self._llm.renderer.render_cmpl_async([{**text, **media}]))[0]

    @contextlib.asynccontextmanager
    async def _multimodal_input(self, prompt: Prompt) -> AsyncIterator[Mapping[str, Any]]:
        """Decode and prepare a prompt's image or video, off the event loop where that takes long."""
        async with contextlib.AsyncExitStack() as stack:
            if prompt.image is not None:
                image = prompt.image.inner if isinstance(prompt.image, Padded) else prompt.image
                await stack.enter_async_context(self.decoder.decode_image(image))
                prompt = replace(prompt, image=self.prepare(prompt.image))
            if multimodal.is_slow(prompt):
                await stack.enter_async_context(self._preparing_slots)
                loop = asyncio.get_running_loop()
                prepared = await loop.run_in_executor(_PREPARING, self._prepared, prompt)
                if prompt.image is not None and self._resizer is not None and self._resizer.applies_to(prompt.image):
                    await stack.aclose()  # frees the pixels: the resized image is far smaller
                yield prepared
            else:
                yield self._prepared(prompt)

    def _prepared(self, prompt: Prompt) -> Mapping[str, Any]:
        """Return a prompt's decoded image or video in the form for `_render`."""
        if self._fixed_images is not None and self._fixed_images.applies_to(prompt):
            return self._fixed_images.prepare(prompt)
        if self.chat is not None and prompt.image is not None:
            return {"multi_modal_data": {"image": [prompt.image.pil()]}}  # what every processor takes
        return multimodal.multimodal_input(prompt, self._resizer)

    async def _stream(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm = self._llm
        try:
            hidden = None if self._chat_renderer is None else self._chat_renderer.hidden(prompt.sampling)
            params = sampling_params(
                prompt.sampling, whole=prompt.whole, clean=self.chat is not None and hidden is None
            )
            inputs = await self._inputs(prompt)
            prompt_end = "" if self.chat is None else str(inputs.get("prompt", ""))[-PROMPT_END:]
            prompt_tokens = len(inputs["prompt_token_ids"])
            context = llm.model_config.max_model_len
            if prompt_tokens >= context:
                raise context_exceeded(context, prompt_tokens)
            completion_tokens = 0
            aligner = TokenAligner(prompt.sampling)
            lora = None if prompt.adapter is None else self._loras[prompt.adapter]
            name = f"{REQUEST_ID.get() or 'diptych'}-{next(self._numbers)}"  # one request may have several prompts
            trace = tracing.traceparent()
            stream = llm.generate(
                inputs,
                params,
                name,
                lora_request=lora,
                priority=int(prompt.batch),
                trace_headers={"traceparent": trace} if trace else None,
            )
            watched = self._watchdog.watched(stream)
            async with contextlib.aclosing(stream), contextlib.aclosing(watched) as outputs:
                async for output in outputs:
                    result = output.outputs[0]
                    completion_tokens += len(result.token_ids)
                    if result.finish_reason == "error":
                        log.error("request %s failed in the engine", REQUEST_ID.get())
                        raise ModelError("The model's engine failed on this request.", code="engine_error")
                    if hidden is not None:
                        result.text = hidden.sub("", result.text)
                    yield Piece(
                        result.text,
                        aligner.tokens(result),
                        FINISH[result.finish_reason] if result.finish_reason else None,
                        prompt_tokens,
                        completion_tokens,
                        prompt_end=prompt_end,
                    )
                    prompt_end = ""
        except VLLMClientError as error:
            raise bad_request(error, llm.model_config.max_model_len) from error
        except EngineDeadError as error:
            raise engine_died() from error
        except EngineGenerateError as error:
            log.error("request %s failed in the engine", REQUEST_ID.get(), exc_info=error)
            raise engine_died() if llm.errored else ModelError("The model failed on this request.") from error
        except (ValueError, TypeError) as error:  # raised by the processor for this text and image
            log.warning("request %s was refused by the processor: %s", REQUEST_ID.get(), type(error).__name__)
            raise BadRequest("The model's processor cannot read this prompt.", code="invalid_prompt") from error


def _memory(description: Description, chosen: Mapping[str, Any], gpu_bytes: int | None, cache: Any) -> Memory:
    """Return the memory of an engine whose key-value cache vLLM has made (`cache`: its cache_config)."""
    held = footprint(description, settings(chosen, description, gpu_bytes))
    size = held.token * int(cache.num_gpu_blocks or 0) * int(cache.block_size or 0)
    return Memory(held.weights, size, requests_at_once(held, size)[0])


def _capability(platform: Any) -> int:
    """Return the major compute capability of the GPU; 0 where vLLM cannot tell."""
    capability = platform.get_device_capability()
    return 0 if capability is None else int(capability.major)


def _copy_small_pictures(engine_socket: Any) -> None:
    """Let a socket of asyncio's copy what is smaller than COPIED. It sends by a plain socket of its own."""
    engine_socket._shadow_sock.copy_threshold = COPIED


def _find_resizer(llm: Any) -> multimodal.Resizer | None:
    """Return the resizer of the model's image processor; None where the deployment sets arguments of the processor."""
    processor, config = llm.renderer.mm_processor, llm.model_config.multimodal_config
    if processor is None or config is None or config.mm_processor_kwargs:
        return None
    return multimodal.Resizer.of(getattr(processor.info.get_hf_processor(), "image_processor", None))


def _placeholders(config: Any, tokenizer: Any) -> dict[str, str]:
    """Return the placeholders of images and videos in prompts: {"image": "<image>", "video": "<video>"}."""
    placeholders: dict[str, str] = {}
    for kind in ("image", "video"):
        token = getattr(config, f"{kind}_token_index", None) or getattr(config, f"{kind}_token_id", None)
        if token is not None:
            placeholders[kind] = tokenizer.convert_ids_to_tokens(token)
    return placeholders


def _patch_tokenizer(tokenizer: Any) -> None:
    """Make the tokenizer return a token for every id, and cache the decoding of single ids.

    Checkpoints have more embeddings than the tokenizer has tokens (LLaVA-1.5: 32,064 and 32,002). The token of such an
    id is None, and vLLM 0.32 dies when one is drawn or ranked: here it is "". vLLM also decodes each ranked token
    alone, on the replica's event loop: with 48 replies of 20 alternatives a token that took 70 % of the loop's time,
    and a request about a small image beside them came 4.4 s late (0.6 s with the cache).
    """
    convert, decode = tokenizer.convert_ids_to_tokens, tokenizer.decode
    cache: dict[int, str] = {}

    def to_tokens(ids: Any, *more: Any, **options: Any) -> Any:
        tokens = convert(ids, *more, **options)
        return [token or "" for token in tokens] if isinstance(tokens, list) else tokens

    def decode_cached(ids: Any, *more: Any, **options: Any) -> Any:
        if more or options or not isinstance(ids, list) or len(ids) != 1:
            return decode(ids, *more, **options)
        if ids[0] not in cache:
            cache[ids[0]] = decode(ids)
        return cache[ids[0]]

    tokenizer.convert_ids_to_tokens, tokenizer.decode = to_tokens, decode_cached
