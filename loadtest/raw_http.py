"""One HTTP/1.1 exchange over a socket of its own: also what no ordinary client would send."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

ROOM = 1 << 20
"""Bytes of a body that are handed to the kernel at once."""


@dataclass(frozen=True)
class Ask:
    """One request. pieces: in how many parts the body is sent, `pause_s` seconds apart. behind: bytes that follow it on
    the same connection, after `behind_s` seconds. leave_s: the client leaves so long after all was sent."""

    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    pieces: int = 1
    pause_s: float = 0.0
    behind: bytes = b""
    behind_s: float = 0.02
    leave_s: float | None = None

    def head(self, host: str) -> bytes:
        """Return the request line and headers. `Host` is `host` where the request brings none."""
        lines = [f"{self.method} {self.path} HTTP/1.1"]
        given = {name.lower() for name, _ in self.headers}
        own = [("host", host), ("content-length", str(len(self.body)))]
        lines += [f"{name}: {value}" for name, value in own if name not in given and (value != "0" or name == "host")]
        lines += [f"{name}: {value}" for name, value in self.headers]
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


@dataclass
class Answer:
    """What came back. status: 0 where the connection broke before there was one, None where the client left as meant.

    seconds: from the first byte of the request to the last of the reply.
    """

    status: int | None = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    seconds: float = 0.0
    trouble: str = ""

    def error(self) -> dict[str, Any] | None:
        """Return the body's error of OpenAI's shape; None where it holds none."""
        try:
            error = json.loads(self.body)["error"]
        except (ValueError, LookupError, TypeError):
            return None
        return error if isinstance(error, dict) and set(error) == {"message", "type", "param", "code"} else None


async def exchange(host: str, port: int, ask: Ask, within_s: float) -> Answer:
    """Send it and read the first reply, to its end. Does not raise for what the network or the server do."""
    answer = Answer()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port, limit=ROOM)
            sending = asyncio.create_task(_send(writer, ask, f"{host}:{port}"))
            reading = asyncio.create_task(_read(reader, answer, ask.method))
            try:
                if ask.leave_s is not None:
                    await sending
                    await asyncio.wait((reading,), timeout=ask.leave_s)
                    answer.status = answer.status or None
                else:
                    await reading
            finally:
                writer.transport.abort()
                sending.cancel()
                reading.cancel()
                await asyncio.gather(sending, reading, return_exceptions=True)
    except TimeoutError:
        answer.trouble = f"no whole answer within {within_s:g} s"
    except (OSError, EOFError, ValueError) as error:
        answer.trouble = type(error).__name__
    answer.seconds = asyncio.get_running_loop().time() - began
    return answer


async def _send(writer: asyncio.StreamWriter, ask: Ask, host: str) -> None:
    """Write head and body; a server that takes no more has said why, and the reader has it."""
    with contextlib.suppress(ConnectionError):
        writer.write(ask.head(host))
        size = max(1, -(-len(ask.body) // ask.pieces)) if ask.pieces > 1 else ROOM
        for start in range(0, len(ask.body), size):
            if start and ask.pause_s:
                await asyncio.sleep(ask.pause_s)
            writer.write(ask.body[start : start + size])
            await writer.drain()
        await writer.drain()
        if ask.behind:
            await asyncio.sleep(ask.behind_s)
            writer.write(ask.behind)
            await writer.drain()


async def _read(reader: asyncio.StreamReader, answer: Answer, method: str) -> None:
    """Read one reply into `answer`: by its length, its chunks, or until the connection closes."""
    status = 100
    while status == 100:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
    pairs = (line.partition(":") for line in lines if line)
    answer.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if answer.headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        answer.body = b"".join(parts)
    elif method != "HEAD":
        answer.body = await reader.readexactly(int(answer.headers.get("content-length", "0")))
    answer.status = status
