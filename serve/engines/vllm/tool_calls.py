"""Reads the calls of functions in a reply's text with vLLM's own parsers.

The parsers are given text alone, without token ids, as the reasoning was split off before.
"""

import json
import logging
from dataclasses import replace
from typing import Any

from serve.engines.base import Piece, ToolCallPart, Tools

log = logging.getLogger(__name__)


class VllmToolReader:
    """A reader of one reply. tokenizer: vLLM's, of the model. whole: the reply is not streamed, and is read at its end.

    A call that is not in its format stays text, as the parser has it; where the parser itself fails, which it may at
    definitions that it does not expect, all that follows is text.
    """

    def __init__(self, tokenizer: Any, tools: Tools, whole: bool) -> None:
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.tool_parsers import ToolParserManager

        assert tools.parser is not None
        fields = {"messages": [], "tools": json.loads(tools.schemas), "tool_choice": "auto"}
        self._request = ChatCompletionRequest.model_validate(fields)
        self._parser = ToolParserManager.get_tool_parser(tools.parser)(tokenizer, self._request.tools)
        if hasattr(self._parser, "skip_reasoning_parsing"):
            self._parser.skip_reasoning_parsing = True
        self._whole, self._text, self._failed = whole, "", False
        self._arguments: dict[int, str] = {}

    def feed(self, piece: Piece) -> Piece:
        """Return the next piece with its calls in `tool_calls`, and without their text."""
        if self._failed:
            return piece
        try:
            return self._fed(piece)
        except Exception:
            log.warning("vLLM's parser of calls failed; the reply is text from here on", exc_info=True)
            self._failed = True
            return replace(piece, text=self._text) if self._whole else piece

    def _fed(self, piece: Piece) -> Piece:
        before, self._text = self._text, self._text + piece.text
        if self._whole:
            return self._at_the_end(piece)
        text, parts = "", tuple[ToolCallPart, ...]()
        if piece.text:
            delta = self._parser.extract_tool_calls_streaming(before, self._text, piece.text, [], [], [], self._request)
            text, parts = self._read(delta)
        if piece.finish_reason is not None and hasattr(self._parser, "finish_streaming"):
            more, last = self._read(self._parser.finish_streaming())
            text, parts = text + more, parts + last
        return replace(piece, text=text, tokens=(), tool_calls=parts)

    def _at_the_end(self, piece: Piece) -> Piece:
        if piece.finish_reason is None:
            return replace(piece, text="", tokens=())
        read = self._parser.extract_tool_calls(self._text, self._request)
        calls = read.tool_calls if read.tools_called else []
        parts = [
            ToolCallPart(at, call.function.arguments, call.id, call.function.name) for at, call in enumerate(calls)
        ]
        return replace(piece, text=read.content or "", tokens=(), tool_calls=tuple(parts))

    def _read(self, delta: Any) -> tuple[str, tuple[ToolCallPart, ...]]:
        """Return the text and the calls of vLLM's DeltaMessage, or None."""
        if delta is None:
            return "", ()
        parts = []
        for call in delta.tool_calls or []:
            function = call.function
            arguments, name = (function.arguments or "", function.name or "") if function else ("", "")
            parts.append(ToolCallPart(call.index, arguments, call.id or "", name))
        return delta.content or "", tuple(parts)
