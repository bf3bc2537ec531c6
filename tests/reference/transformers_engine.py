"""A reference engine: Hugging Face transformers, one request and one token at a time. Slow, and exact.

vLLM is compared with it (tests/engines/test_parity.py). Attention is the `eager` implementation: the fast one ignores
Gemma 2's soft cap (measured 7.6e-3 on log-probabilities).
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from serve.engines import hub
from serve.engines.base import FinishReason, Piece, Prompt, Token
from serve.engines.remote.chat_request import IMAGE_PART
from serve.engines.vllm.torchvision import repair
from serve.errors import BadRequest, ModelError
from serve.media.image import Image


class TransformersEngine:
    """An engine with a checkpoint in transformers.

    checkpoint: a local folder or a hub id, with `revision`. prepare: transforms an image before the processor gets it.
    device, dtype: of the weights. chat: prompts are messages, which are written by the checkpoint's chat template, with
    reasoning off. json_schema is not supported.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        revision: str | None = None,
        gated: bool = False,
        prepare: Callable[[Image], Image] = lambda image: image,
        progress: Callable[[str], None] = lambda step: None,
        device: str = "cpu",
        dtype: str = "float32",
        chat: bool = False,
    ) -> None:
        self.chat = chat
        self.checkpoint, self.revision, self.gated = checkpoint, revision, gated
        self.prepare, self.progress, self.device, self.dtype = prepare, progress, device, dtype
        self._model: Any = None
        self._processor: Any = None
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Load the weights. Raises ModelError."""
        await asyncio.to_thread(self.load)

    def load(self) -> None:
        """Load the weights, blocking. Raises ModelError."""
        folder = hub.locate(self.checkpoint, self.revision, gated=self.gated, progress=self.progress)
        self.progress("loading weights")
        repair()
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self._processor = AutoProcessor.from_pretrained(folder)
            model = AutoModelForImageTextToText.from_pretrained(
                folder, dtype=getattr(torch, self.dtype), attn_implementation="eager"
            )
        except (RuntimeError, ValueError, OSError, LookupError) as error:
            raise ModelError(f"{Path(folder).name} could not be loaded: {error}", code="load_failed") from error
        self._model = model.to(self.device).eval()
        self.progress("ready")

    async def check(self) -> None:
        """Raise ModelError before `start` and after `stop`."""
        if self._model is None:
            raise ModelError("The model's engine is not running.", code="engine_dead")

    async def stop(self) -> None:
        self._model = self._processor = None

    def generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        """Generate a reply, a token a piece. Closing the generator stops it after the current token."""
        return self._generate(prompt)

    async def _generate(self, prompt: Prompt) -> AsyncGenerator[Piece, None]:
        await self.check()
        if prompt.sampling.json_schema is not None:
            raise BadRequest("This engine does not follow a JSON schema.", param="response_format")
        async with self._turn:
            inputs = await asyncio.to_thread(self.inputs, prompt)
            generation = Generation(self._model, self._processor, inputs, prompt)
            while (piece := await asyncio.to_thread(generation.step)) is not None:
                yield piece

    def inputs(self, prompt: Prompt) -> Any:
        """Return the model's inputs: token ids [1, n], pixel values, and for PaliGemma the token types of a prefix LM.

        Raises BadRequest for a video where the model's processor takes none.
        """
        if self.chat:
            return self._chat_inputs(prompt).to(self.device, self._model.dtype)
        media: dict[str, Any] = {}
        if prompt.video is not None:
            if getattr(self._processor, "video_processor", None) is None:
                raise BadRequest("This model takes no video.", param="video")
            media["videos"] = [prompt.video.frames]
        if prompt.image is not None:
            media["images"] = self.prepare(prompt.image).pil()
        return self._processor(text=prompt.text, **media, return_tensors="pt").to(self.device, self._model.dtype)

    def _chat_inputs(self, prompt: Prompt) -> Any:
        messages = json.loads(prompt.text)
        for message in messages:
            for at, part in enumerate(message["content"] if isinstance(message["content"], list) else []):
                if part == IMAGE_PART:
                    assert prompt.image is not None
                    message["content"][at] = {"type": "image", "image": self.prepare(prompt.image).pil()}
        return self._processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,
        )

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the prompt's token ids, image tokens included."""
        return list(self.inputs(prompt)["input_ids"][0].tolist())

    def logprobs(self, prompt: Prompt, reply: list[int] | None = None) -> Any:
        """Compute log-probabilities [len(reply) + 1, vocabulary] after the prompt and after each token of the reply.

        The reply is given, not generated, so that a whole greedy reply is checked in one pass.
        """
        import torch

        with torch.no_grad():
            out = self._model(**self.inputs(prompt), use_cache=True)
            rows = [self._capped(out.logits[0, -1])]
            for token in reply or []:
                # without a mask, of whose length Qwen's positions would be
                out = self._model(
                    input_ids=torch.tensor([[token]], device=self.device),
                    past_key_values=out.past_key_values,
                    use_cache=True,
                )
                rows.append(self._capped(out.logits[0, -1]))
        return torch.log_softmax(torch.stack(rows).float(), -1)

    def _capped(self, logits: Any) -> Any:
        return soft_capped(logits, self._model.config)


def says(logprobs: Any, reply: list[int], slack: float) -> bool:
    """Return whether each token of a reply is the likeliest after those before it, or less likely by at most `slack`.

    logprobs: [len(reply), vocabulary], as `TransformersEngine.logprobs` returns.
    """
    if slack == 0:
        return bool(logprobs.argmax(-1).tolist() == reply)
    return all(float(row.max() - row[token]) <= slack for row, token in zip(logprobs, reply, strict=True))


def soft_capped(logits: Any, config: Any) -> Any:
    """Apply Gemma 2's cap to the final logits, which the model was trained with and transformers' PaliGemma leaves
    out."""
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else (logits / cap).tanh() * cap


class Generation:
    """A reply, drawn token by token."""

    def __init__(self, model: Any, processor: Any, inputs: Any, prompt: Prompt) -> None:
        import torch

        self.model, self.tokenizer, self.sampling = model, processor.tokenizer, prompt.sampling
        self.inputs = dict(inputs)
        self.count = int(inputs["input_ids"].shape[1])
        self.cache: Any = None
        self.token_ids: list[int] = []
        self.sent = 0
        self.done = False
        self.generator = torch.Generator(device=model.device)
        seed = prompt.sampling.seed
        _ = self.generator.seed() if seed is None else self.generator.manual_seed(seed % 2**63)

    def step(self) -> Piece | None:
        """Generate the next token as a piece; None after the last one."""
        import torch

        if self.done:
            return None
        with torch.no_grad():
            out = self.model(**self.inputs, past_key_values=self.cache, use_cache=True)
        self.cache = out.past_key_values
        logits = soft_capped(out.logits[0, -1].float(), self.model.config)
        logprobs = torch.log_softmax(logits, -1)
        token = self._draw(logits)
        self.token_ids.append(token)
        length = self.count + len(self.token_ids)
        self.inputs = {"input_ids": torch.tensor([[token]], device=logits.device)}
        ended = token in self._end_ids() and not self.sampling.ignore_eos
        context = self.model.config.get_text_config().max_position_embeddings
        full = len(self.token_ids) >= self.sampling.max_tokens or length >= context
        text = self.tokenizer.decode(self.token_ids[:-1] if ended else self.token_ids, skip_special_tokens=False)
        cut = min((at for stop in self.sampling.stop if (at := text.find(stop)) >= 0), default=-1)
        if cut >= 0:
            text, ended = text[:cut], True
        finish: FinishReason | None = "stop" if ended else "length" if full else None
        self.done = finish is not None
        delta = self._new_text(text)
        best = logprobs.topk(self.sampling.top_logprobs)
        top = tuple((self.tokenizer.decode([i]), p) for p, i in zip(*map(torch.Tensor.tolist, best), strict=True))
        tokens = () if ended and not delta else (Token(delta, float(logprobs[token]), top),)
        return Piece(delta, tokens, finish, self.count, len(self.token_ids))

    def _new_text(self, text: str) -> str:
        """Return the new part of `text` that can be sent: no incomplete character, and nothing that may become a stop
        text."""
        end = len(text)
        if not self.done:
            end -= max((len(stop) - 1 for stop in self.sampling.stop), default=0)
            end = self.sent if text.endswith("\ufffd") else max(end, self.sent)
        delta, self.sent = text[self.sent : end], end
        return delta

    def _end_ids(self) -> set[int]:
        ends = self.model.generation_config.eos_token_id
        return set(ends) if isinstance(ends, list) else {ends}

    def _draw(self, logits: Any) -> int:
        """Draw a token with penalties, temperature and top-p in OpenAI's order; greedy at temperature 0."""
        import torch

        sampling = self.sampling
        if sampling.presence_penalty or sampling.frequency_penalty:
            counts = torch.bincount(torch.tensor(self.token_ids, dtype=torch.long), minlength=len(logits)).to(logits)
            logits = logits - sampling.frequency_penalty * counts - sampling.presence_penalty * (counts > 0)
        if sampling.temperature == 0:
            return int(logits.argmax())
        probabilities, order = torch.softmax(logits / sampling.temperature, -1).sort(descending=True)
        probabilities[probabilities.cumsum(0) - probabilities > sampling.top_p] = 0
        return int(order[torch.multinomial(probabilities, 1, generator=self.generator)])
