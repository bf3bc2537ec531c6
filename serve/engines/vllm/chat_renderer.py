"""Writes messages with a checkpoint's chat template, and makes vLLM's engine input of them and an image.

The template writes `<s>` or `<bos>` itself where the model wants it, so the tokenizer must not add another (as it does
for Mistral and Gemma). A text of the user's could hold control tokens and the picture's placeholder: vLLM would give
the picture to the first one, wherever it stands. They get a space inside, and are then ordinary text.
"""

import asyncio
import json
import re
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import PIL.Image

from serve.engines.base import ReasoningOptions, Sampling, Tools
from serve.engines.chat_settings import ChatSettings
from serve.engines.chat_templates import CHAT_TEMPLATES, TemplateFault, in_form, takes_parts
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.reasoning_switch import EFFORT, NONE, reasoning_switch
from serve.engines.remote.chat_request import IMAGE_PART, OWN_WORDS
from serve.engines.vllm.multimodal import cache_salt
from serve.errors import BadRequest

_WRITING = ThreadPoolExecutor(1, "template")

PLACE = {"type": "image_pil", "image_pil": PIL.Image.new("RGB", (1, 1))}
"""An image in vLLM's form of messages. Only its place counts: the prompt's own image replaces it."""


class ChatRenderer:
    """A renderer of messages for one engine. renderer: vLLM's."""

    def __init__(self, renderer: Any, settings: ChatSettings, facts: CheckpointFacts) -> None:
        self._renderer = renderer
        self._template = settings.read_template() or facts.chat_template
        self._switch = reasoning_switch(self._template)
        self._template_args = {**self._switch.values(ReasoningOptions(enabled=False)), **settings.template_args}
        self._tokenization = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        self._control_tokens = ControlTokens(_control_tokens(renderer))

    async def inputs(
        self, text: str, media: Mapping[str, Any], reasoning: ReasoningOptions, tools: Tools | None = None
    ) -> Any:
        """Return vLLM's engine input. text: messages as JSON, with IMAGE_PART where the image goes. media: the image
        in the form of `multimodal_input`, or {}. reasoning, tools: what the template is told about them.

        Raises VLLMClientError where the template refuses the messages, or where they are too long; BadRequest where it
        has no tools; ModelError where it takes too much.
        """
        from vllm.exceptions import VLLMValidationError
        from vllm.renderers.hf import HfRenderer
        from vllm.renderers.params import ChatParams

        messages, values = self._messages(text), self.template_args(reasoning)
        if tools is not None:
            if self._template is not None and not self._takes_tools(self._template):
                message = "The model's chat template has no tools."
                raise BadRequest(message, param="tools", code="unsupported_parameter")
            values["tools"] = self._escaped(json.loads(tools.schemas))
        if isinstance(self._renderer, HfRenderer):
            try:
                written = await asyncio.get_running_loop().run_in_executor(_WRITING, self._write, messages, values)
            except TemplateFault as error:
                raise VLLMValidationError(str(error)) from None
            prompt = {"prompt": written}
        else:  # code of vLLM's writes the prompt
            params = ChatParams(chat_template=self._template, chat_template_kwargs=values)
            _, prompt = await self._renderer.render_messages_async(messages, params)
        prompt = {**prompt, **media, **cache_salt()}
        (tokenized,) = await self._renderer.tokenize_prompts_async([prompt], self._tokenization)
        return await self._renderer.process_for_engine_async(tokenized, time.time())

    def _write(self, messages: list[Any], values: Mapping[str, Any]) -> str:
        """Return what the template writes, with the values that transformers gives it. Blocks.

        vLLM would compile and write it in this process, without a limit on its memory.
        """
        from vllm.renderers.chat_utils import parse_chat_messages
        from vllm.renderers.hf import resolve_chat_template

        config, tokenizer = self._renderer.model_config, self._renderer.get_tokenizer()
        template = self._template or resolve_chat_template(tokenizer, None, None, model_config=config)
        conversation, _, _ = parse_chat_messages(messages, config, "openai" if takes_parts(template) else "string")
        written = [in_form(message, template) for message in conversation]
        known = {"tools": None, "documents": None, **tokenizer.special_tokens_map, "messages": written}
        return CHAT_TEMPLATES.write(template, {**known, **values})

    def template_args(self, reasoning: ReasoningOptions) -> dict[str, Any]:
        """Return the values of the template's variables: reasoning is off unless the deployment or the prompt says."""
        wanted = self._switch.values(reasoning)
        if reasoning.on and reasoning.effort is None and self._template_args.get(EFFORT) not in (None, NONE):
            wanted.pop(EFFORT, None)  # the deployment has chosen one
        return {"add_generation_prompt": True, "tokenize": False, **self._template_args, **wanted}

    def hidden(self, sampling: Sampling) -> re.Pattern[str] | None:
        """Return what matches the control tokens to leave out of a reply that keeps those of its marks.

        None for a reply that keeps all of them, or none.
        """
        return None if sampling.special_tokens else self._control_tokens.others(sampling.marks)

    def _takes_tools(self, template: str) -> bool:
        try:
            return "tools" in CHAT_TEMPLATES.variables(template)
        except TemplateFault:
            return False

    def _escaped(self, value: Any) -> Any:
        """Return a value of JSON with the control tokens in its texts escaped."""
        if isinstance(value, str):
            return self._control_tokens.escape(value)
        if isinstance(value, list):
            return [self._escaped(item) for item in value]
        if isinstance(value, dict):
            return {self._control_tokens.escape(name): self._escaped(item) for name, item in value.items()}
        return value

    def _messages(self, text: str) -> list[dict[str, Any]]:
        """Return messages whose texts are escaped, names of functions and ids of calls too."""
        return [
            {
                name: self._parts(value) if name == "content" and isinstance(value, list) else self._escaped(value)
                for name, value in message.items()
            }
            for message in json.loads(text)
        ]

    def _parts(self, content: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the image's place and the texts, those that follow each other as one, as templates may part them."""
        parts: list[dict[str, Any]] = []
        for part in content:
            if part == IMAGE_PART:
                parts.append(PLACE)
                continue
            text = part["text"] if part.get(OWN_WORDS) else self._control_tokens.escape(part["text"])
            if parts and parts[-1] is not PLACE:
                text = parts.pop()["text"] + text
            parts.append({"type": "text", "text": text})
        return parts


class ControlTokens:
    """A tokenizer's control tokens, to be taken out of users' texts."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = {token for token in tokens if len(token) > 1 and not token.isspace()}
        self._firsts = {token[0] for token in self._tokens}
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        self._others: dict[tuple[str, ...], re.Pattern[str] | None] = {}

    def others(self, marks: tuple[str, ...]) -> re.Pattern[str] | None:
        """Return what matches the control tokens that are no part of a mark; None where no mark holds any."""
        if marks not in self._others:
            self._others[marks] = self._match_others(marks)
        return self._others[marks]

    def _match_others(self, marks: tuple[str, ...]) -> re.Pattern[str] | None:
        kept = {token for token in self._tokens if any(token in mark for mark in marks)}
        others = sorted(self._tokens - kept, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, others)) or "(?!)") if kept else None

    def escape(self, text: str) -> str:
        """Return the text with a space after the first character of each control token in it.

        The time grows with the text's length times the number of different lengths of tokens.
        """
        if not any(first in text for first in self._firsts):
            return text
        pieces: list[str] = []
        for at, letter in enumerate(text):
            pieces.append(letter)
            if letter in self._firsts and any(text[at : at + length] in self._tokens for length in self._lengths):
                pieces.append(" ")
        return "".join(pieces)


def _control_tokens(renderer: Any) -> set[str]:
    """Return the tokenizer's special tokens, and the placeholders of pictures, videos and sounds."""
    tokenizer = renderer.tokenizer
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    tokens = {str(token) for token in added if getattr(token, "special", False)}
    tokens |= set(getattr(tokenizer, "all_special_tokens", []))
    processor = None if renderer.mm_processor is None else renderer.mm_processor.info.get_hf_processor()
    for kind in ("image", "video", "audio"):
        token = getattr(processor, f"{kind}_token", None)
        if isinstance(token, str):
            tokens.add(token)
    return tokens
