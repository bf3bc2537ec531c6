"""Writes prompts with chat templates in a process of their own, `chat_template_process`, which has the limits."""

import atexit
import contextlib
import functools
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

from serve.errors import ModelError
from serve.media.processes import child_environment

CPU_S = 2.0
"""Seconds of processor time for a prompt. A published template takes less than a millisecond."""
MEMORY = 256 * 2**20
"""Bytes of the process's address space, beside its own."""
LENGTH = 4 * 2**20
"""Characters of a prompt: more than any context has."""
SILENCE_S = 60.0
"""Seconds within which the process answers on a machine that has other things to do."""
AS_VALUE = re.compile("text['\"]: *['\"]a7")
"""A part that was written as a value of Python or JSON."""
TOO_MUCH = b'{"error": null}'


class TemplateFault(Exception):
    """A template that is none, or that refuses what it is to write: its reason."""


class ChatTemplates:
    """The process, started when it is first needed, and again after a template that was too much. Thread-safe; blocks.

    cpu_s, memory: its limits. `variables` and `write` raise TemplateFault, and ModelError where these do not suffice.
    """

    def __init__(self, cpu_s: float = CPU_S, memory: int = MEMORY) -> None:
        self.cpu_s, self.memory = cpu_s, memory
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: io.BufferedRWPair | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def variables(self, template: str) -> frozenset[str]:
        """Return the names of the variables that a template takes."""
        return frozenset(self._ask([template, None])["variables"])

    def write(self, template: str, values: Mapping[str, Any]) -> str:
        """Return what a template writes. values: of its variables, as JSON has them; also `messages`."""
        return str(self._ask([template, values])["text"])

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def forget(self) -> None:
        """Drop the process without ending it: for a fork of the process that started it."""
        self._lock = threading.Lock()
        if self._process is not None:
            self._process.returncode = 0  # its parent waits for it
        self._process = self._stream = None

    def _ask(self, request: list[Any]) -> dict[str, Any]:
        try:
            line = json.dumps(request).encode() + b"\n"
        except RecursionError:
            raise TemplateFault("The messages are nested too deeply.") from None
        with self._lock:
            reply = self._exchange(line) or self._exchange(line)  # it may have died since it was last used
        answer: dict[str, Any] = json.loads(reply or TOO_MUCH)
        if "error" not in answer:
            return answer
        if answer["error"] is None:
            limits = f"{self.cpu_s:g} s of processor time, {self.memory >> 20} MB or {LENGTH:,} characters"
            message = f"Its chat template takes more than {limits} for one prompt."
            raise ModelError(message, code="chat_template_limit")
        raise TemplateFault(answer["error"])

    def _exchange(self, line: bytes) -> bytes | None:
        """Send a request. Return its reply, empty where its time was up; None where the process has died otherwise."""
        try:
            stream = self._started()
            stream.write(line)
            stream.flush()
            if reply := stream.readline():
                return reply
        except TimeoutError:
            self._end()
            return TOO_MUCH
        except OSError:
            pass
        return TOO_MUCH if self._end() == -signal.SIGPROF else None

    def _started(self) -> io.BufferedRWPair:
        if self._stream is None:
            ours, theirs = socket.socketpair()
            ours.settimeout(SILENCE_S)
            with theirs, ours:  # the stream keeps it open
                limits = map(str, (theirs.fileno(), self.cpu_s, self.memory, LENGTH))
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "serve.engines.chat_template_process", *limits],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    env=child_environment(),
                    pass_fds=[theirs.fileno()],
                    process_group=0,
                )
                self._stream = ours.makefile("rwb")
        return self._stream

    def _end(self) -> int | None:
        """End the process; return its exit status, None where there was none."""
        process, stream = self._process, self._stream
        self._process = self._stream = None
        if stream is not None:
            with contextlib.suppress(OSError):  # it still has what the process did not take
                stream.close()
        if process is None:
            return None
        try:
            return process.wait(1)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


CHAT_TEMPLATES = ChatTemplates()
atexit.register(CHAT_TEMPLATES.close)
os.register_at_fork(after_in_child=CHAT_TEMPLATES.forget)


@functools.lru_cache(96)
def takes_parts(template: str, role: str = "user") -> bool:
    """Return whether a template writes the texts of a message's parts; else it is given one text, with placeholders.

    role: of the message. Published templates go through the parts of a question alone, and write those of a system
    message as Python has them.
    """
    text = {"type": "text", "text": "a7"}
    question = {"role": "user", "content": [{"type": "image"}, text if role == "user" else {**text, "text": "b"}]}
    probed = {"role": role, "content": [text]}
    messages = {"user": [question], "system": [probed, question], "assistant": [question, probed, question]}[role]
    try:
        written = CHAT_TEMPLATES.write(template, {"messages": messages, "add_generation_prompt": True})
    except TemplateFault:
        return False
    return "a7" in written and AS_VALUE.search(written) is None


def in_form(message: Mapping[str, Any], template: str) -> Mapping[str, Any]:
    """Return a message in parts as the template takes its role: a system's or an assistant's may be one text."""
    role, content = message["role"], message.get("content")
    if role not in ("system", "assistant") or not isinstance(content, list) or takes_parts(template, role):
        return message
    return {**message, "content": "\n".join(part["text"] for part in content)}
