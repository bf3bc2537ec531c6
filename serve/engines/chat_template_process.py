"""A process that writes prompts with chat templates, within limits: a stranger's template may loop or fill the memory.

python -m serve.engines.chat_template_process FD CPU MEMORY LENGTH

FD: a stream socket. CPU: seconds of processor time for a request. MEMORY: bytes of address space for all of them.
LENGTH: characters of a prompt.

A request is a line of JSON: [template, values], or [template, null] for the names of the template's variables. Its
reply is one too: {"text": ...}, {"variables": [...]}, or {"error": ...}, what the template or Jinja says; {"error":
null} where memory or length did not suffice, after which the process ends. A request that takes too long ends it by
SIGPROF. It has nothing of the server's: no secrets, no connections, neither torch nor transformers.
"""

import functools
import json
import resource
import signal
import socket
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

FAULTS = (
    *(jinja2.TemplateError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, OSError),
    *(RuntimeError, AssertionError, SyntaxError),
)
"""Raised by a template on values that it was not written for, or by Jinja for what is no template."""


def main() -> None:
    """Answer requests until the other end closes the socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal: the parent decides when to end
    cpu, memory, length = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    with open("/proc/self/statm") as file:
        memory += int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with socket.socket(fileno=int(sys.argv[1])) as connection, connection.makefile("rb") as lines:
        for line in lines:
            signal.setitimer(signal.ITIMER_PROF, cpu)
            reply = _reply(line, length)
            signal.setitimer(signal.ITIMER_PROF, 0)
            connection.sendall(reply or b'{"error": null}\n')
            if reply is None:
                break


def _reply(line: bytes, length: int) -> bytes | None:
    """Return the reply to a request; None where memory or length did not suffice."""
    try:
        template, values = json.loads(line)
        answer = _answer(template, values)
        return json.dumps(answer).encode() + b"\n" if len(answer.get("text", "")) <= length else None
    except MemoryError:
        return None


def _answer(template: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    try:
        if values is None:
            _compiled(template)
            return {"variables": sorted(jinja2.meta.find_undeclared_variables(_environment().parse(template)))}
        return {"text": _compiled(template).render(**values)}
    except FAULTS as error:
        return {"error": str(error)[:1000] or type(error).__name__}


@functools.lru_cache(8)
def _compiled(template: str) -> jinja2.Template:
    return _environment().from_string(template)


@functools.cache
def _environment() -> jinja2.Environment:
    """Return the environment in which transformers writes chat templates."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_refuse, strftime_now=lambda form: datetime.now().strftime(form))
    return environment


class GenerationTag(jinja2.ext.Extension):
    """The tag `generation`, which marks replies for training and writes nothing."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        return jinja2.nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Write JSON without the escapes of HTML that Jinja's own filter adds."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


if __name__ == "__main__":
    main()
