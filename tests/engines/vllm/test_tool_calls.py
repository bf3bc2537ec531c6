"""vLLM's parsers, fed with replies in the published formats: the calls come out whole and streamed, as text alone."""

import json
import re
from typing import Any

import pytest

from serve.engines.base import Piece, ToolCallPart, Tools
from serve.engines.vllm.torchvision import repair
from serve.models import tool_calls
from serve.models.tool_calls import MARKS, template_format

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

SCHEMAS = json.dumps(
    [
        {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": properties}}}
        for name, properties in (("weather", {"place": {"type": "string"}}), ("clock", {}))
    ]
)
REPLIES = {
    "hermes": 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"place": "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>',
    "glm45": "I look.\n<tool_call>weather\n<arg_key>place</arg_key>\n<arg_value>Oslo</arg_value>\n</tool_call>\n"
    "<tool_call>clock\n</tool_call>",
    "gemma4": 'I look.<|tool_call>call:weather{place:<|"|>Oslo<|"|>}<tool_call|><|tool_call>call:clock{}<tool_call|>',
    "mistral": 'I look.[TOOL_CALLS]weather[ARGS]{"place": "Oslo"}[TOOL_CALLS]clock[ARGS]{}',
    "qwen3_coder": "I look.\n<tool_call>\n<function=weather>\n<parameter=place>\nOslo\n</parameter>\n</function>\n"
    "</tool_call>\n<tool_call>\n<function=clock>\n</function>\n</tool_call>",
}
PIECE = re.compile("|".join(re.escape(mark) for marks in MARKS.values() for mark in marks) + "|..?", re.DOTALL)


def tokenizer(*marks: str) -> Any:
    """Return a tokenizer that knows nothing but a format's special tokens."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>")))
    plain.add_special_tokens({"additional_special_tokens": [*marks, "<think>", "</think>", "<|channel>", "<channel|>"]})
    return plain


def read(parser: str, text: str, whole: bool, marks: tuple[str, ...]) -> tuple[str, list[tuple[str, str]]]:
    """Return a reply's text without its calls, and the calls."""
    from serve.engines.vllm.tool_calls import VllmToolReader

    repair()  # before vLLM is imported, as an engine does
    reader = VllmToolReader(tokenizer(*marks), Tools(SCHEMAS, parser), whole)
    pieces = PIECE.findall(text)
    fed = [reader.feed(Piece(part, (), "stop" if at + 1 == len(pieces) else None)) for at, part in enumerate(pieces)]
    calls: dict[int, list[ToolCallPart]] = {}
    for piece in fed:
        for part in piece.tool_calls:
            calls.setdefault(part.index, []).append(part)
    assert all(parts[0].id and not any(part.id for part in parts[1:]) for parts in calls.values())
    named = [(parts[0].name, "".join(part.arguments for part in parts)) for parts in calls.values()]
    return "".join(piece.text for piece in fed), named


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("parser", REPLIES)
def test_calls_of_a_published_format_are_read(parser: str, whole: bool) -> None:
    text, calls = read(parser, REPLIES[parser], whole, MARKS[parser])
    assert text.strip() == "I look." and [name for name, _ in calls] == ["weather", "clock"]
    assert [json.loads(arguments or "{}") for _, arguments in calls] == [{"place": "Oslo"}, {}]
    assert read(parser, "No call here.", whole, MARKS[parser]) == ("No call here.", [])


@pytest.mark.parametrize("whole", [True, False])
def test_calls_of_an_older_mistral_are_read(whole: bool) -> None:
    listed = '[TOOL_CALLS][{"name": "weather", "arguments": {"place": "Oslo"}}, {"name": "clock", "arguments": {}}]'
    text, calls = read("mistral", listed, whole, ("[TOOL_CALLS]",))
    assert not text.strip() and [(name, json.loads(arguments)) for name, arguments in calls] == [
        ("weather", {"place": "Oslo"}),
        ("clock", {}),
    ]


@pytest.mark.parametrize("whole", [True, False])
def test_reply_is_text_where_the_parser_fails(whole: bool) -> None:
    from serve.engines.vllm.tool_calls import VllmToolReader

    repair()
    schemas = json.dumps([{"type": "function", "function": {"name": "weather", "parameters": {"properties": 5}}}])
    reader = VllmToolReader(tokenizer(*MARKS["glm45"]), Tools(schemas, "glm45"), whole)
    pieces = PIECE.findall(REPLIES["glm45"])
    fed = [reader.feed(Piece(part, (), "stop" if at + 1 == len(pieces) else None)) for at, part in enumerate(pieces)]
    text = "".join(piece.text for piece in fed)
    assert not any(piece.tool_calls for piece in fed)
    assert text == REPLIES["glm45"] if whole else text.startswith("I look.")


def test_template_shows_its_format() -> None:
    for text, name in (
        ("<tool_call>\n{name: }", tool_calls.HERMES),
        ("<tool_call>\n<function=a>", tool_calls.QWEN3_CODER),
        ("<tool_call>a\n<arg_key>", tool_calls.GLM),
        ("<|tool_call>", tool_calls.GEMMA4),
        ("[TOOL_CALLS]", tool_calls.MISTRAL),
        ("[AVAILABLE_TOOLS]", None),
    ):
        assert template_format("{% if tools %}" + text + "{% endif %}") == name
        assert template_format(text) is None
    assert template_format(None) is None
