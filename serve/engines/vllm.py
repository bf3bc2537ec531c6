"""vLLM's AsyncLLM as an Engine: deltas, a log-probability for every token, usage, finish reason, abort.

Only a model's own process imports this module; vLLM itself is imported in `start`, after the environment is set.
"""

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any

from serve.engines import hub, processes
from serve.engines.arguments import arguments, environment
from serve.engines.base import FinishReason, Piece, Prompt, Sampling, Token
from serve.engines.last_words import LastWords
from serve.errors import BadRequest, ModelError
from serve.image import Image

FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "abort": "abort", "repetition": "stop"}

# What vLLM, transformers and torch raise for a checkpoint or an argument that they cannot use.
FAULTS = (RuntimeError, ValueError, OSError, ImportError, LookupError, TypeError, AttributeError, AssertionError)


class VllmEngine:
    """One checkpoint in one vLLM engine.

    checkpoint: a local folder or a hub id, with `revision`; gated: whether its licence must be accepted on the hub.
    engine: vLLM arguments that the family dictates; deployment: those of this place (tensor_parallel_size,
    gpu_memory_utilization, max_num_seqs ...), which win. prepare: what a picture needs before the processor sees it.
    progress: called from another thread with a few words on what is going on while it starts.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        gated: bool = False,
        engine: Mapping[str, Any] | None = None,
        deployment: Mapping[str, Any] | None = None,
        prefix_lm: bool = False,
        prepare: Callable[[Image], Image] = lambda image: image,
        progress: Callable[[str], None] = lambda words: None,
    ) -> None:
        self.checkpoint, self.revision, self.gated = checkpoint, revision, gated
        self.engine, self.deployment, self.prefix_lm = dict(engine or {}), dict(deployment or {}), prefix_lm
        self.prepare, self.progress = prepare, progress
        self._llm: Any = None
        self._image_token: str | None = None

    async def start(self) -> None:
        """Download what is missing, load, and answer once. Raises ModelError with one clear sentence."""
        self._llm = await asyncio.to_thread(self._start)
        self.progress("warming up")
        async for _ in self._stream({"prompt_token_ids": [self._first_token()]}, Sampling(max_tokens=2)):
            pass
        self.progress("ready")

    def generate(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Speak. Closing or cancelling the generator aborts the request in vLLM."""
        return self._generate(prompt)

    async def check(self) -> None:
        """Raises ModelError when the engine is dead or was never started."""
        if self._llm is None:
            raise ModelError("The model's engine is not running.", code="engine_dead")
        if self._llm.errored:
            raise _dead()

    async def stop(self) -> None:
        """End vLLM's processes."""
        llm, self._llm = self._llm, None
        if llm is not None:
            await asyncio.to_thread(llm.shutdown)
            llm.shutdown = lambda: None  # __del__ calls it again, and stumbles when the interpreter is ending

    def _start(self) -> Any:
        folder = hub.locate(self.checkpoint, self.revision, gated=self.gated, progress=self.progress)
        self.progress("importing vLLM")
        fork = processes.may_fork()
        environment(self.prefix_lm)
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM

        chosen = arguments(
            folder, self.engine, self.deployment, is_prefix_lm=self.prefix_lm, cpu=current_platform.is_cpu()
        )
        with LastWords() as words:
            try:
                config = AsyncEngineArgs(**chosen).create_engine_config()
                processes.start_by(fork and current_platform.is_cpu())
                self.progress("loading weights")
                llm = AsyncLLM.from_vllm_config(config, disable_log_stats=bool(chosen.get("disable_log_stats")))
            except FAULTS as error:
                raise ModelError(
                    f"{folder.name} could not be loaded: {words.reason(error)}", code="load_failed"
                ) from error
        hf_config = config.model_config.hf_config
        image = getattr(hf_config, "image_token_index", None) or getattr(hf_config, "image_token_id", None)
        self._image_token = None if image is None else llm.renderer.tokenizer.convert_ids_to_tokens(image)
        return llm

    def _first_token(self) -> int:
        tokenizer = self._llm.renderer.tokenizer
        return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else 0)

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        await self.check()
        allowed = 0 if self.prefix_lm or prompt.image is None else 1  # a prefix LM's processor adds its own
        if self._image_token is not None and prompt.text.count(self._image_token) > allowed:
            raise BadRequest(f"The text must not contain {self._image_token}.", param="question")
        wanted: dict[str, Any] = {"prompt": prompt.text}
        if prompt.image is not None:
            wanted["multi_modal_data"] = {"image": await asyncio.to_thread(self._picture, prompt.image)}
        async with contextlib.aclosing(self._stream(wanted, prompt.sampling)) as pieces:
            async for piece in pieces:
                yield piece

    def _picture(self, image: Image) -> Any:
        return self.prepare(image).pil()

    async def _stream(self, wanted: dict[str, Any], sampling: Sampling) -> AsyncGenerator[Piece, None]:
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        llm = self._llm
        try:
            params = sampling_params(sampling)
            (inputs,) = await llm.renderer.render_cmpl_async([wanted])
            prompt_tokens = len(inputs["prompt_token_ids"])
            context = llm.model_config.max_model_len
            if prompt_tokens >= context:
                raise _too_long(context, prompt_tokens)
            said = 0
            async with contextlib.aclosing(llm.generate(inputs, params, f"diptych-{uuid.uuid4().hex}")) as outputs:
                async for output in outputs:
                    spoken = output.outputs[0]
                    said += len(spoken.token_ids)
                    if spoken.finish_reason == "error":
                        raise ModelError("The model's engine failed on this request.", code="engine_error")
                    yield Piece(
                        spoken.text,
                        tokens(spoken, sampling.top_logprobs),
                        FINISH[spoken.finish_reason] if spoken.finish_reason else None,
                        prompt_tokens,
                        said,
                    )
        except VLLMClientError as error:
            raise _refused(error, llm.model_config.max_model_len) from error
        except EngineDeadError as error:
            raise _dead() from error
        except EngineGenerateError as error:
            raise _dead() if llm.errored else ModelError(f"The model failed: {error.__cause__}") from error
        except (ValueError, TypeError) as error:  # the processor's own complaint about this text and picture
            raise BadRequest(f"The model's processor refused the prompt: {error}", code="invalid_prompt") from error


def sampling_params(sampling: Sampling) -> Any:
    """Our Sampling as vLLM's. Log-probabilities are always asked for: merging weighs by confidence."""
    from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

    schema = sampling.json_schema
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=None if sampling.seed is None else sampling.seed % 2**63,  # any integer is a seed; torch takes 64 bits
        stop=list(sampling.stop),
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.top_logprobs,
        skip_special_tokens=False,  # PaliGemma's <loc> tokens may be special, and are the answer
        structured_outputs=None
        if schema is None
        else StructuredOutputsParams(json=schema, disable_any_whitespace=True),
        output_kind=RequestOutputKind.DELTA,
    )


def tokens(spoken: Any, top: int) -> tuple[Token, ...]:
    """The tokens of one delta; their texts joined are the delta's text.

    vLLM names each token alone ("cat" where the text has " cat"), and joins deltas while nobody reads. One token gets
    the whole delta; of several, each gets the text up to the end of its name, the last one the rest.
    """
    found: list[Token] = []
    at = 0
    for i, (token, alternatives) in enumerate(zip(spoken.token_ids, spoken.logprobs or (), strict=False)):
        own = alternatives[token]
        if i == len(spoken.token_ids) - 1:
            end = len(spoken.text)
        else:
            name = (own.decoded_token or "").strip()
            start = spoken.text.find(name, at)
            end = start + len(name) if start >= 0 else at
        ranked = sorted(alternatives.values(), key=lambda choice: -choice.logprob)[:top]
        likeliest = tuple((choice.decoded_token or "", choice.logprob) for choice in ranked)
        found.append(Token(spoken.text[at:end], own.logprob, likeliest))
        at = end
    if spoken.finish_reason == "stop" and spoken.stop_reason is None and found and not found[-1].text:
        found.pop()  # the end-of-sequence token: counted, not spoken
    return tuple(found)


def _dead() -> ModelError:
    return ModelError("The model's engine died; it has to be started again.", code="engine_dead")


def _too_long(context: int, prompt_tokens: int | None = None) -> BadRequest:
    have = "" if prompt_tokens is None else f", and the prompt with its image has {prompt_tokens}"
    return BadRequest(
        f"The model reads at most {context - 1} tokens{have}.", param="question", code="context_length_exceeded"
    )


def _refused(error: Exception, context: int) -> BadRequest:
    words = str(error.args[0] if error.args else error)
    if "context length" in words or "max_model_len" in words:
        return _too_long(context)
    return BadRequest(words, param=getattr(error, "parameter", None))
