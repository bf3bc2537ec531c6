"""Reasoning is split off a reply, whatever its style, and however the reply is cut into pieces."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.engines.base import Generation, Piece, Prompt, ReasoningOptions, Sampling, Token
from serve.models.contracts import QWEN3_VL
from serve.models.reasoning import (
    ROOM,
    STYLES,
    THINK,
    PieceSplitter,
    Reasoning,
    ReasoningSplitter,
    ReasoningStyle,
    answer_start,
    reasoning_refusal,
    suffix_switch,
    system_switch,
)

ALL = tuple(STYLES.values())
WORDS = st.text(st.sampled_from("ab <|>/[]{}:think\n◁▷é"), max_size=40)
"""Texts that look like beginnings of marks."""
styles = st.sampled_from(ALL)


def whole(text: str) -> bool:
    """Tell whether a text holds no mark of any style, nor the beginning of one at its end."""
    return not any(mark in text for style in ALL for mark in style.begins + style.ends)


def split(text: str, cuts: list[int], *, opened: bool = False, styles: tuple[ReasoningStyle, ...] = ALL) -> list[str]:
    """Return the reasoning, the answer and all parts joined, of a text that comes in pieces."""
    splitter = ReasoningSplitter(styles, opened=opened)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    parts = [part for a, b in zip(edges, edges[1:], strict=False) for part in splitter.feed(text[a:b])]
    parts += splitter.end()
    joined = {kind: "".join(part.text for part in parts if part.kind == kind) for kind in ("reasoning", "answer")}
    return [joined["reasoning"], joined["answer"], "".join(part.text for part in parts)]


@given(styles, st.data(), WORDS.filter(whole), WORDS.filter(whole), st.lists(st.integers(0, 120)), st.booleans())
def test_reasoning_and_answer_come_apart_wherever_the_reply_is_cut(
    style: ReasoningStyle, data: st.DataObject, thought: str, answer: str, cuts: list[int], opened: bool
) -> None:
    begin = "" if opened else data.draw(st.sampled_from(style.begins))
    end = data.draw(st.sampled_from(style.ends))
    answer = "x" + answer
    text = f"{begin}\n{thought}y{end}\n\n{answer}"
    reasoning, said_answer, joined = split(text, cuts, opened=opened)
    assert joined == text
    assert said_answer == answer
    assert reasoning == f"{thought}y".lstrip()


@given(styles, WORDS.filter(whole), st.lists(st.integers(0, 120)), st.integers(0, 200), st.booleans())
def test_answer_of_a_reply_that_is_broken_off_never_holds_reasoning(
    style: ReasoningStyle, thought: str, cuts: list[int], end: int, opened: bool
) -> None:
    text = f"{'' if opened else style.begins[0]}{thought}THOUGHT{style.ends[0]}ANSWER"[:end]
    splitter = PieceSplitter(ALL, opened=opened)
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [splitter.feed(Piece(text[a:b])) for a, b in zip(edges, edges[1:], strict=False)]
    pieces.append(splitter.feed(Piece("", finish_reason="length")))
    assert "ANSWER".startswith("".join(piece.text for piece in pieces))
    assert f"{thought}THOUGHT".lstrip().startswith("".join(piece.reasoning for piece in pieces))


@given(WORDS.filter(whole), st.lists(st.integers(0, 50)))
def test_reply_without_reasoning_is_its_answer(text: str, cuts: list[int]) -> None:
    assert split(text, cuts) == ["", text, text]


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("<think>a</think>b", "a", "b"),
        ("<think>\n\n</think>\n\nb", "", "b"),
        ("</think>b", "", "b"),
        ("<think>a</think>\n<think>c</think>b", "ac", "b"),
        ("the <think> tag </think> is", "", "the <think> tag </think> is"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("<|channel>thought\na<channel|>b", "a", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "a", "b"),
        ("<|channel|>final<|message|>b", "", "b"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<seed:think>a</seed:think>b", "a", "b"),
        ("<think>a", "a", ""),
        ("<", "", "<"),
    ],
)
def test_reply_letter_by_letter_gives_reasoning_and_answer(text: str, reasoning: str, answer: str) -> None:
    assert split(text, list(range(len(text)))) == [reasoning, answer, text]
    assert split(text, []) == [reasoning, answer, text]


def test_mark_of_another_style_stays_in_the_reasoning_of_a_declared_one() -> None:
    assert split("<think>a [/THINK] b</think>c", [], styles=(THINK,))[:2] == ["a [/THINK] b", "c"]


@given(st.lists(st.sampled_from(["<", "<think>", "th", "ink>a", "</th", "ink>", " b", "c"]), min_size=1))
def test_tokens_of_the_answer_are_its_text(texts: list[str]) -> None:
    splitter = PieceSplitter(ALL)
    pieces = [splitter.feed(Piece(text, (Token(text, -1.0),))) for text in texts]
    pieces.append(splitter.feed(Piece("", finish_reason="stop")))
    for piece in pieces:
        assert "".join(token.text for token in piece.tokens) == piece.text


def test_confidence_leaves_reasoning_out() -> None:
    splitter = PieceSplitter((THINK,))
    texts = [("<think>", 0.0), ("maybe", -9.0), ("</think>", 0.0), ("red", -0.5)]
    pieces = [splitter.feed(Piece(text, (Token(text, logprob),))) for text, logprob in texts]
    tokens = tuple(token for piece in pieces for token in piece.tokens)
    assert tokens == (Token("red", -0.5),)
    assert Generation("red", tokens).confidence() == pytest.approx(0.6065, abs=1e-4)


@pytest.mark.parametrize("style", ALL, ids=lambda style: style.name)
def test_contract_reads_the_answer_after_reasoning_of_each_style(style: ReasoningStyle) -> None:
    draft, box = '[{"bbox_2d": [1, 1, 9, 9], "label": "cat"}]', '[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]'
    text = f"{style.begins[-1]}{draft}{style.ends[-1]}{box}"
    assert [each.box for each in QWEN3_VL.parse(text, (1000, 1000), ["cat"]).boxes] == [(100, 200, 300, 400)]
    assert answer_start(text) == text.index(box)
    assert answer_start(text.replace(style.begins[-1], "")) == len(draft + style.ends[-1])
    assert answer_start(f"{style.begins[0]}{draft}") is None


PROMPT = Prompt("user: hi\nassistant: <think>\n", None, Sampling(max_tokens=64))
SWITCHED = Reasoning((THINK,), switchable=True, switch=suffix_switch("<think>\n", "<think>\n\n</think>\n\n"), on=True)


@pytest.mark.parametrize(
    ("options", "text", "max_tokens", "budget", "opened"),
    [
        (ReasoningOptions(), "<think>\n", 64 + ROOM, None, True),
        (ReasoningOptions(effort="none"), "<think>\n\n</think>\n\n", 64, None, False),
        (ReasoningOptions(enabled=False, budget=9), "<think>\n\n</think>\n\n", 64, None, False),
        (ReasoningOptions(effort="high", budget=100), "<think>\n", 164, 100, True),
    ],
)
def test_prompt_follows_the_request(
    options: ReasoningOptions, text: str, max_tokens: int, budget: int | None, opened: bool
) -> None:
    prompt = SWITCHED.prompt(PROMPT, options, extend=True)
    assert prompt.text == f"user: hi\nassistant: {text}"
    assert (prompt.sampling.max_tokens, prompt.sampling.thinking_token_budget) == (max_tokens, budget)
    assert (SWITCHED.splitter(prompt).feed(Piece("a b")).reasoning == "a b") is opened
    assert SWITCHED.prompt(PROMPT, options, extend=False).sampling.max_tokens == 64


@pytest.mark.parametrize("style", ALL, ids=lambda style: style.name)
def test_prompt_that_a_chat_engine_wrote_tells_whether_the_reply_begins_inside(style: ReasoningStyle) -> None:
    reasoning = Reasoning((style,), switchable=True, on=False)
    prompt = reasoning.prompt(Prompt('[{"role": "user"}]', None), ReasoningOptions(enabled=True), extend=False)
    assert set(prompt.sampling.marks) == {*style.begins, *style.ends}
    for end, inside in ((f"user: hi{style.begins[-1]}\n", True), (f"{style.begins[0]}\n{style.ends[0]}\n", False)):
        splitter = reasoning.splitter(prompt)
        pieces = [splitter.feed(Piece("", prompt_end=end)), splitter.feed(Piece(f"a{style.ends[0]}b"))]
        assert pieces[0].prompt_end == ""
        assert "".join(piece.reasoning for piece in pieces) == ("a" if inside else "")


@pytest.mark.parametrize("own", [[], ["Be brief."]])
def test_system_message_of_the_makers_stands_before_the_requests_own(own: list[str]) -> None:
    reasoning = Reasoning((THINK,), switchable=True, switch=system_switch("Reason first."), on=False)
    rest = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    prompt = Prompt(json.dumps([{"role": "system", "content": text} for text in own] + rest), None)
    assert reasoning.prompt(prompt, ReasoningOptions(), extend=False).text == prompt.text
    switched = json.loads(reasoning.prompt(prompt, ReasoningOptions("high"), extend=False).text)
    assert switched == [{"role": "system", "content": "\n\n".join(["Reason first.", *own])}, *rest]


def test_effort_reaches_a_model_that_cannot_be_turned_off() -> None:
    wishes = [ReasoningOptions(effort=effort) for effort in ("high", "none", None)]
    prompts = [Reasoning(on=True).prompt(PROMPT, wish, extend=False) for wish in wishes]
    assert [prompt.reasoning for prompt in prompts] == [
        ReasoningOptions("high", True),
        ReasoningOptions(None, True),
        ReasoningOptions(None, True),
    ]


@pytest.mark.parametrize(
    ("reasoning", "options", "param"),
    [
        (None, ReasoningOptions(), None),
        (None, ReasoningOptions(effort="none", budget=3), None),
        (None, ReasoningOptions(effort="low"), "reasoning_effort"),
        (None, ReasoningOptions(enabled=True), "chat_template_kwargs.enable_thinking"),
        (None, ReasoningOptions(budget=3), "thinking_token_budget"),
        (Reasoning(on=True), ReasoningOptions(effort="none"), "reasoning_effort"),
        (Reasoning(on=True), ReasoningOptions(effort="low"), None),
        (Reasoning(on=True, bounded=False), ReasoningOptions(budget=3), "thinking_token_budget"),
        (SWITCHED, ReasoningOptions(effort="none"), None),
    ],
)
def test_refusal_names_the_parameter(reasoning: Reasoning | None, options: ReasoningOptions, param: str | None) -> None:
    refused = reasoning_refusal(reasoning, options)
    assert (refused and refused[0]) == param
