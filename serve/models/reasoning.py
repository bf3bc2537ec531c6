"""Reasoning: what a model writes before its answer, and how it is switched, bounded and split off.

A family declares `Model.reasoning`; everything else follows from it:

    Reasoning((THINK,), switchable=True, switch=suffix_switch("<think>\n", "<think>\n\n</think>\n\n"), on=False)

`Worker` and the chat route call, in this order: `reasoning_refusal(model.reasoning, options)` for the request,
`model.reasoning.prompt(prompt, options, extend=...)` for each prompt; `model.reasoning.splitter(prompt)` for each
generation, whose `feed(piece)` takes the engine's pieces and gives the same with `text` and `tokens` of the answer
alone and the rest in `reasoning`. `answer_start(text)` is for whole transcripts of unknown origin.

An engine that writes prompts with a chat template passes `Prompt.reasoning` on to it, tells the prompt's end with its
first piece (`Piece.prompt_end`), and keeps the special tokens of `Sampling.marks` in the text. The marks are those of
vLLM's reasoning parsers and of the models' templates.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from serve.engines.base import Piece, Prompt, ReasoningOptions, Token

ROOM = 1024
"""Tokens that a reply may be longer with reasoning, where neither its length nor a budget is given."""


@dataclass(frozen=True)
class ReasoningStyle:
    """The marks around a model's reasoning. Of several beginnings or ends that fit, the longest is taken."""

    name: str
    begins: tuple[str, ...]
    ends: tuple[str, ...]


THINK = ReasoningStyle("think", ("<think>",), ("</think>",))
CHANNEL = ReasoningStyle("channel", ("<|channel>thought\n", "<|channel>thought"), ("<channel|>",))
HARMONY = ReasoningStyle(
    "harmony",
    ("<|channel|>analysis<|message|>", "<|channel|>analysis"),
    ("<|end|><|start|>assistant<|channel|>final<|message|>", "<|channel|>final<|message|>"),
)
BRACKETS = ReasoningStyle("brackets", ("[THINK]",), ("[/THINK]",))
SEED = ReasoningStyle("seed", ("<seed:think>",), ("</seed:think>",))
KIMI = ReasoningStyle("kimi", ("◁think▷",), ("◁/think▷",))
COHERE = ReasoningStyle("cohere", ("<|START_THINKING|>",), ("<|END_THINKING|>",))
MINIMAX = ReasoningStyle("minimax", ("<mm:think>",), ("</mm:think>",))
STYLES = {style.name: style for style in (THINK, CHANNEL, HARMONY, BRACKETS, SEED, KIMI, COHERE, MINIMAX)}
"""Used by: Qwen, DeepSeek, GLM, InternVL (think); Gemma 4 (channel); gpt-oss (harmony); Mistral, Magistral (brackets);
Seed-OSS; Kimi-VL; Command A; MiniMax M3."""


class Part(NamedTuple):
    """A part of a reply. A mark belongs to neither, and so do blanks beside it."""

    kind: Literal["reasoning", "answer", "mark"]
    text: str


class ReasoningSplitter:
    """A splitter of one reply's text, fed as it arrives. The texts of all parts joined are the reply.

    Reasoning stands before the answer: marks after the answer's first word are the answer's own. opened: the prompt
    ends with the mark that begins the reasoning, so that the reply begins inside. inside: the reply is reasoning now.
    """

    def __init__(self, styles: Sequence[ReasoningStyle], *, opened: bool = False) -> None:
        self.inside = opened
        self._begins = _longest_first(mark for style in styles for mark in style.begins)
        self._ends = _longest_first(mark for style in styles for mark in style.ends)
        self._ends_of = {mark: _longest_first(style.ends) for style in styles for mark in style.begins}
        self._closing = self._ends
        self._started = False
        """Whether a word of the reasoning, or of the answer where that has begun, was seen."""
        self._marked = False
        self._rest = ""

    def feed(self, text: str) -> list[Part]:
        """Return the parts that are certain with `text`. What may be the beginning of a mark is held back."""
        if self._started and not self.inside:
            return [Part("answer", text)] if text else []
        self._rest += text
        return self._take(last=False)

    def end(self, *, cut: bool = False) -> list[Part]:
        """Return what was held back. cut: the reply was broken off, perhaps within a mark."""
        if cut and self._rest and self._is_begun(self._rest):
            parts = [Part("mark", self._rest)]
        else:
            parts = self._take(last=True)
            if self._rest:  # blanks alone
                parts.append(Part("mark" if self._marked or self.inside else "answer", self._rest))
        self._rest = ""
        return parts

    def _take(self, *, last: bool) -> list[Part]:
        parts: list[Part] = []
        while self._rest and self._step(parts, last=last):
            pass
        return parts

    def _step(self, parts: list[Part], *, last: bool) -> bool:
        """Move one part from what was held back to `parts`. Return False where it must wait for more text."""
        if self._started and not self.inside:
            self._move(parts, "answer", len(self._rest))
            return True
        if not self._started:
            blanks = len(self._rest) - len(self._rest.lstrip())
            if blanks == len(self._rest):
                return False
            marks = self._begins + (self._closing if self.inside else self._ends)
            mark = self._mark_at(blanks, marks, last=last)
            if mark is None:
                return False
            if mark:
                self._pass(parts, blanks, mark)
            else:
                if self._marked or self.inside:
                    self._move(parts, "mark", blanks)
                self._started = True
            return True
        at, mark = self._find(self._closing, last=last)
        self._move(parts, "reasoning", at)
        if mark:
            self._pass(parts, 0, mark)
        return bool(mark)

    def _pass(self, parts: list[Part], before: int, mark: str) -> None:
        """Move a mark, and the blanks before it: reasoning begins with it, or ends."""
        self._move(parts, "mark", before + len(mark))
        self.inside = mark in self._begins
        self._closing = self._ends_of.get(mark, self._ends)
        self._started, self._marked = False, True

    def _move(self, parts: list[Part], kind: Literal["reasoning", "answer", "mark"], length: int) -> None:
        if length:
            parts.append(Part(kind, self._rest[:length]))
            self._rest = self._rest[length:]

    def _mark_at(self, at: int, marks: Sequence[str], *, last: bool) -> str | None:
        """Return the mark at this place, "" where there is none, None where more text may show one."""
        rest = self._rest[at:]
        for mark in marks:
            if rest.startswith(mark):
                return mark
            if mark.startswith(rest) and not last:
                return None
        return ""

    def _find(self, marks: Sequence[str], *, last: bool) -> tuple[int, str]:
        """Return where the first mark begins and the mark, or where one may begin and ""."""
        for match in _FIRST_LETTER.finditer(self._rest):
            if (mark := self._mark_at(match.start(), marks, last=last)) != "":
                return match.start(), mark or ""
        return len(self._rest), ""

    def _is_begun(self, text: str) -> bool:
        return any(mark.startswith(text.lstrip()) for mark in self._closing + self._begins)


class PieceSplitter:
    """A ReasoningSplitter for an engine's pieces, whose tokens it keeps beside the text that they are part of.

    Reasoning that a server has split off itself is kept.
    """

    def __init__(self, styles: Sequence[ReasoningStyle], *, opened: bool = False) -> None:
        self._splitter = ReasoningSplitter(styles, opened=opened)
        self._styles = styles
        self._tokens: list[Token] = []
        self._answered = self._reasoned = self._cut = False

    @property
    def unanswered(self) -> bool:
        """Return whether the reply, which has ended, did so within its reasoning."""
        return self._splitter.inside or (self._cut and self._reasoned and not self._answered)

    def feed(self, piece: Piece) -> Piece:
        """Return the piece with the text that is certain: that of the answer, and that of the reasoning.

        The last piece gets what was held back.
        """
        if piece.prompt_end:
            self._splitter.inside = is_opened(piece.prompt_end, self._styles)
        self._tokens += piece.tokens
        parts = self._splitter.feed(piece.text)
        if piece.finish_reason is not None:
            self._cut = piece.finish_reason != "stop"
            parts += self._splitter.end(cut=self._cut)
        text, reasoning = "", piece.reasoning
        tokens: list[Token] = []
        for part in parts:
            own = self._take(len(part.text))
            if part.kind == "answer":
                text += part.text
                tokens += own
            elif part.kind == "reasoning":
                reasoning += part.text
        self._answered |= bool(text.strip())
        self._reasoned |= bool(reasoning)
        return replace(piece, text=text, reasoning=reasoning, tokens=tuple(tokens), prompt_end="")

    def _take(self, length: int) -> list[Token]:
        """Remove the tokens of the next `length` characters, and return them. One that goes on is cut in two."""
        taken: list[Token] = []
        while self._tokens and length:
            token = self._tokens[0]
            taken.append(token._replace(text=token.text[:length]))
            if len(token.text) > length:
                self._tokens[0] = token._replace(text=token.text[length:])
                break
            length -= len(token.text)
            del self._tokens[0]
        return taken


@dataclass(frozen=True)
class Reasoning:
    """A model's way of reasoning.

    styles: its own, or all that it may have where that is not known. switchable: it can be turned on and off: by
    `switch`, which takes a prompt's text and whether reasoning is on and returns the prompt's text, or without one by
    whoever answers, from `Prompt.reasoning`. on: where a request does not say; None: not known. bounded: the engine can
    end it after a number of tokens. budget: that number, where a request gives none. opened: the reply begins inside;
    None: where the prompt ends with a mark that begins it. schemas: whoever answers holds the answer alone to a JSON
    schema; an engine here does so from the first token on, which leaves no room to reason.
    """

    styles: tuple[ReasoningStyle, ...] = tuple(STYLES.values())
    switchable: bool = False
    switch: Callable[[str, bool], str] | None = None
    on: bool | None = None
    bounded: bool = True
    budget: int | None = None
    opened: bool | None = None
    schemas: bool = False

    def prompt(self, prompt: Prompt, options: ReasoningOptions, *, extend: bool) -> Prompt:
        """Return the prompt as a request wants it; what this model cannot do is left out.

        extend: the request gives no length, so that the reply may be longer by its reasoning.
        """
        on = self.on if options.on is None or not self.switchable else options.on
        budget = self.budget if options.budget is None or not self.bounded else options.budget
        sampling = prompt.sampling
        if on is not False:
            schema = sampling.json_schema if self.schemas else None
            sampling = replace(sampling, thinking_token_budget=budget, json_schema=schema)
        if on and extend:
            sampling = replace(sampling, max_tokens=sampling.max_tokens + (ROOM if budget is None else budget))
        marks = tuple(mark for style in self.styles for mark in style.begins + style.ends)
        sampling = replace(sampling, marks=marks)
        text = prompt.text if self.switch is None or on is None else self.switch(prompt.text, on)
        effort = options.effort if self.switchable or options.on else None
        return replace(prompt, text=text, sampling=sampling, reasoning=ReasoningOptions(effort, on))

    def splitter(self, prompt: Prompt) -> PieceSplitter:
        """Return a splitter for the generation of a prompt."""
        opened = self.opened
        if opened is None:
            opened = is_opened(prompt.text, self.styles)
        return PieceSplitter(self.styles, opened=opened and prompt.reasoning.on is not False)

    def engine_args(self) -> dict[str, Any]:
        """Return vLLM's arguments for the limit on reasoning: the marks between which it counts tokens."""
        style = self.styles[0]
        marks = {"reasoning_start_str": style.begins[-1], "reasoning_end_str": style.ends[0]}
        return {"reasoning_config": marks} if self.bounded else {}


def reasoning_refusal(reasoning: Reasoning | None, options: ReasoningOptions) -> tuple[str, str] | None:
    """Return the parameter that a model cannot follow, and why as the end of a sentence; None where it can."""
    param = "reasoning_effort" if options.effort is not None else "chat_template_kwargs.enable_thinking"
    if reasoning is None:
        if options.on:
            return param, "does not reason"
        if options.on is None and options.budget is not None:
            return "thinking_token_budget", "does not reason"
        return None
    if options.on is not None and not reasoning.switchable and options.on is not reasoning.on:
        return param, "cannot turn its reasoning on or off"
    if options.budget is not None and not reasoning.bounded:
        return "thinking_token_budget", "has no limit on its reasoning"
    return None


def is_opened(prompt: str, styles: Iterable[ReasoningStyle]) -> bool:
    """Return whether a prompt ends with a mark that begins reasoning, so that the reply begins inside."""
    return prompt.rstrip().endswith(tuple(mark.rstrip() for style in styles for mark in style.begins))


def suffix_switch(on: str, off: str) -> Callable[[str, bool], str]:
    """Return a switch for a template whose prompts end with `on` or with `off`; either may be empty."""

    def switch(text: str, wanted: bool) -> str:
        for end in sorted((on, off), key=len, reverse=True):
            if end and text.endswith(end):
                text = text.removesuffix(end)
                break
        return text + (on if wanted else off)

    return switch


def system_switch(protocol: str) -> Callable[[str, bool], str]:
    """Return a switch for a model that reasons where a system message tells it to: before the request's own, if any."""

    def switch(text: str, wanted: bool) -> str:
        if not wanted:
            return text
        messages = json.loads(text)
        own = [messages.pop(0)["content"]] if messages[0]["role"] == "system" else []
        return json.dumps([{"role": "system", "content": "\n\n".join([protocol, *own])}, *messages], ensure_ascii=False)

    return switch


def answer_start(text: str) -> int | None:
    """Return where the answer begins in a whole reply of any style; None if it ends within its reasoning.

    The mark that begins the reasoning may be missing, as where the prompt has it.
    """
    start, open_ = 0, False
    for match in _ANY_MARK.finditer(text):
        if match.lastgroup == "end":
            start, open_ = match.end(), False
        else:
            open_ = True
    return None if open_ else start


def _longest_first(marks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(marks, key=len, reverse=True))


_FIRST_LETTER = re.compile(r"[<\[◁]")
_ANY_MARK = re.compile(
    "|".join(
        f"(?P<{name}>{'|'.join(re.escape(mark) for mark in _longest_first(marks))})"
        for name, marks in (
            ("begin", [mark for style in STYLES.values() for mark in style.begins]),
            ("end", [mark for style in STYLES.values() for mark in style.ends]),
        )
    )
)
