"""Writes messages with a checkpoint's chat template, and makes vLLM's engine input of them and an image.

The template writes `<s>` or `<bos>` itself where the model wants it, so the tokenizer must not add another (as it does
for Mistral and Gemma). A text of the user's could hold control tokens and the picture's placeholder: vLLM would give
the picture to the first one, wherever it stands. They get a space inside, and are then ordinary text.
"""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import PIL.Image

from serve.engines.chat_settings import ChatSettings
from serve.engines.checkpoint_facts import CheckpointFacts
from serve.engines.remote.chat_request import IMAGE_PART
from serve.engines.vllm.multimodal import cache_salt
from serve.errors import ModelError

PLACE = {"type": "image_pil", "image_pil": PIL.Image.new("RGB", (1, 1))}
"""An image in vLLM's form of messages. Only its place counts: the prompt's own image replaces it."""


class ChatRenderer:
    """A renderer of messages for one engine. renderer: vLLM's."""

    def __init__(self, renderer: Any, settings: ChatSettings, facts: CheckpointFacts) -> None:
        from vllm.renderers.params import ChatParams

        text = _template(settings)
        switch = {facts.switch: False} if facts.switch and text is None else {}
        self._renderer = renderer
        self._params = ChatParams(
            chat_template=text,
            chat_template_kwargs={"add_generation_prompt": True, "tokenize": False, **switch, **settings.template_args},
        )
        self._tokenization = renderer.default_chat_tok_params.with_kwargs(add_special_tokens=False)
        self._control_tokens = ControlTokens(_control_tokens(renderer))

    async def inputs(self, text: str, media: Mapping[str, Any]) -> Any:
        """Return vLLM's engine input. text: messages as JSON, with IMAGE_PART where the image goes. media: the image
        in the form of `multimodal_input`, or {}.

        Raises VLLMClientError where the template refuses the messages, or where they are too long.
        """
        _, prompt = await self._renderer.render_messages_async(self._messages(text), self._params)
        prompt = {**prompt, **media, **cache_salt()}
        (tokenized,) = await self._renderer.tokenize_prompts_async([prompt], self._tokenization)
        return await self._renderer.process_for_engine_async(tokenized, time.time())

    def _messages(self, text: str) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = json.loads(text)
        for message in messages:
            content = message["content"]
            if isinstance(content, str):
                message["content"] = self._control_tokens.escape(content)
                continue
            message["content"] = [
                PLACE if part == IMAGE_PART else {**part, "text": self._control_tokens.escape(part["text"])}
                for part in content
            ]
        return messages


class ControlTokens:
    """A tokenizer's control tokens, to be taken out of users' texts."""

    def __init__(self, tokens: Iterable[str]) -> None:
        self._tokens = {token for token in tokens if len(token) > 1 and not token.isspace()}
        self._firsts = {token[0] for token in self._tokens}
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)

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


def _template(settings: ChatSettings) -> str | None:
    if settings.template is None:
        return None
    try:
        return Path(settings.template).expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise ModelError(
            f"The chat template {settings.template} cannot be read.", code="chat_template_missing"
        ) from None
