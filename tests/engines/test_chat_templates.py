"""Chat templates are written in a process of their own: what a hostile one takes is bounded, the next is written."""

import os
import re
import signal
from collections.abc import Iterator

import psutil
import pytest

from serve.engines.chat_templates import CHAT_TEMPLATES, ChatTemplates, TemplateFault, in_form, takes_parts
from serve.errors import ModelError

CONTENT = [{"type": "image"}, {"type": "text", "text": "wo?"}]
VALUES = {"messages": [{"role": "user", "content": CONTENT}], "x": {"b": 1, "a": "é<"}}
PARTS = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
LOOP = "{% for i in range(99999) %}"
HOSTILE = {
    "long text": "{{ 'a' * 10**10 }}",
    "doubled text": "{% set n = namespace(x='a') %}" + LOOP + "{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "filter": "{{ 'a' | center(10**10) }}",
    "format": "{{ '%9999999999d' % 1 }}",
    "large number": "{{ 10**(10**8) > 1 }}",
    "loops over the messages": LOOP + "{% for m in messages * 99999 %}{% endfor %}{% endfor %}",
    "long prompt": "{{ 'a' * 5000000 }}",
    "constant of a condition": "{% if messages %}" + LOOP + "{{ lipsum(n=999) }}{% endfor %}{% endif %}",
}


@pytest.fixture(scope="module")
def templates() -> Iterator[ChatTemplates]:
    """Yield a process with small limits."""
    templates = ChatTemplates(cpu_s=0.2, memory=64 * 2**20)
    yield templates
    templates.close()


@pytest.mark.slow
@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_template_that_takes_too_much_is_refused_and_leaves_nothing_running(
    template: str, templates: ChatTemplates
) -> None:
    templates.variables(PARTS)
    process = psutil.Process(templates.pid)
    with pytest.raises(ModelError, match=r"takes more than 0\.2 s of processor time, 64 MB or") as refused:
        templates.write(template, VALUES)
    assert refused.value.code == "chat_template_limit"
    assert templates.write(PARTS, VALUES) == "wo?"
    assert not process.is_running()


@pytest.mark.parametrize(
    "template",
    ["{{", "{{" + "(" * 50_000, "{{ raise_exception('no') }}", "{{ messages.a.b }}", "{{ ''.__class__.__mro__ }}",
     "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
)  # fmt: skip
def test_template_that_fails_says_why_and_the_process_goes_on(template: str, templates: ChatTemplates) -> None:
    templates.variables(PARTS)
    process = templates.pid
    with pytest.raises(TemplateFault, match="."):
        templates.write(template, VALUES)
    assert templates.pid == process


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("a\n  {% if x %}\nb\n  {% endif %}\nc", "a\nb\nc"),
        ("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "01"),
        ("{{ x | tojson }}{{ x | tojson(indent=1, sort_keys=true) }}", '{"b": 1, "a": "é<"}{\n "a": "é<",\n "b": 1\n}'),
        ("a\n{% generation %}\n{{ x.b }}\n{% endgeneration %}\nc", "a\n1\nc"),
        ("{{ strftime_now('%%') }}{{ none_of_these }}", "%"),
    ],
)
def test_template_is_written_as_transformers_does(template: str, text: str, templates: ChatTemplates) -> None:
    assert templates.write(template, VALUES) == text


def test_variables_are_those_that_the_template_does_not_set(templates: ChatTemplates) -> None:
    assert templates.variables("{% set a = b %}{{ a }}{% generation %}{{ c }}{% endgeneration %}") == {"b", "c"}


def test_process_that_was_killed_is_started_again_and_has_no_secrets(
    templates: ChatTemplates, monkeypatch: pytest.MonkeyPatch
) -> None:
    templates.variables(PARTS)
    assert templates.pid is not None
    os.kill(templates.pid, signal.SIGKILL)
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert templates.write(PARTS, VALUES) == "wo?"
    assert "HF_TOKEN" not in psutil.Process(templates.pid).environ()


@pytest.mark.parametrize(
    ("template", "takes"),
    [
        (PARTS, True),
        ("{{ messages[0].content }}", False),
        ("{{ messages[0].content | tojson }}", False),
        ("{{ messages[0].content + '' }}", False),
        ("{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}{{ c[-1]['text'] }}{% endif %}", True),
        ("type", False),
    ],
)
def test_template_that_goes_through_parts_is_recognized_by_its_text(template: str, takes: bool) -> None:
    assert takes_parts(template) is takes


QUESTIONS = (
    "{% if m.role == 'user' %}<user>{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endif %}"
)
TURNS = "{% for m in messages %}" + QUESTIONS
AS_THEY_ARE = TURNS + "{% if m.role != 'user' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
"""As GLM-4.1V's: a question's parts are gone through, other messages written as they are."""
TRIMMED = (
    "{% if messages[0].role == 'system' %}<system>{{ messages[0].content | trim }}{% endif %}"
    + TURNS
    + "{% if m.role == 'assistant' %}<assistant>{% for c in m.content %}{{ c.text }}{% endfor %}{% endif %}{% endfor %}"
)
"""As Gemma 4's: the parts of all messages but the system's are gone through."""
JOINED = TRIMMED.replace("<system>{{ messages[0].content | trim }}", "{{ '<system>' + messages[0].content }}")


@pytest.mark.parametrize(
    "template", [AS_THEY_ARE, TRIMMED, JOINED, PARTS], ids=["as they are", "trimmed", "joined", "parts"]
)
def test_messages_in_parts_are_written_as_their_texts_whatever_their_role(template: str) -> None:
    texts = {"system": "Be brief.", "user": "what?", "assistant": "a cat"}
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in texts.items()]
    messages.append({"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "sure?"}]})
    assert takes_parts(template)
    written = CHAT_TEMPLATES.write(template, {"messages": [in_form(message, template) for message in messages]})
    assert re.sub(r"<\w+>", "", written) == "Be brief.what?a catsure?"


def test_call_without_a_text_has_an_empty_one_where_parts_are_not_taken() -> None:
    call = {"role": "assistant", "content": [], "tool_calls": [{"id": "a"}]}
    assert in_form(call, AS_THEY_ARE) == {**call, "content": ""}
    assert in_form(call, TRIMMED) == call
