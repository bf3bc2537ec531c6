"""A small server on loopback that speaks OpenAI's API over raw HTTP, so that it can break it in every way."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

KEY = "sk-a-key-that-nobody-may-read"
SECRET = f"the server repeats {KEY} in its error"
Script = Callable[[asyncio.StreamWriter], Coroutine[Any, Any, None]]


@dataclass
class ChatServer:
    """A server. replies: a script for each request, the last one for all further ones; models: that of /models.

    bodies, heads: of all chat requests so far. working: requests being answered. connections: number of all so far.
    open: those open now.
    """

    port: int = 0
    replies: list[Script] = field(default_factory=list)
    models: Script | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    working: int = 0
    connections: int = 0
    open: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, *_ = head.split()
                if method == "GET":
                    assert path == "/v1/models", path
                    await (self.models or replies_with(200, {"object": "list", "data": []}))(writer)
                    continue
                assert path == "/v1/chat/completions", path
                length = next(line for line in head.split("\r\n") if line.lower().startswith("content-length:"))
                self.bodies.append(json.loads(await reader.readexactly(int(length.split(":")[1]))))
                self.heads.append(head)
                script = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
                self.working += 1
                try:
                    if not await _while_connected(script(writer), reader) or writer.is_closing():
                        return
                finally:
                    self.working -= 1
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client hung up
        finally:
            writer.close()
            self.open -= 1

    async def wait_idle(self) -> None:
        """Return once no request is being answered. Raises TimeoutError after two seconds."""
        async with asyncio.timeout(2):
            while self.working:
                await asyncio.sleep(0.005)

    async def wait_closed(self) -> None:
        """Return once no connection is open. Raises TimeoutError after two seconds."""
        async with asyncio.timeout(2):
            while self.open:
                await asyncio.sleep(0.005)


async def _while_connected(work: Coroutine[Any, Any, None], reader: asyncio.StreamReader) -> bool:
    """Run a script until the client hangs up. Return whether it ended by itself."""
    tasks = asyncio.create_task(work), asyncio.create_task(reader.read(1))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = tasks[0].done()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return ended


@asynccontextmanager
async def chat_server(*replies: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[ChatServer]:
    chat = ChatServer(replies=list(replies))
    server = await asyncio.start_server(chat.serve, "127.0.0.1", 0, ssl=tls, limit=2**26)
    chat.port = server.sockets[0].getsockname()[1]
    try:
        yield chat
    finally:
        server.close()


def event(value: Any) -> bytes:
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str | None, finish: str | None = None, logprob: float | None = None) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    if logprob is not None:
        choice["logprobs"] = {"content": [{"token": text, "logprob": logprob, "bytes": [1], "top_logprobs": []}]}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"object": "chat.completion.chunk", "choices": [], "usage": counts}


def events(texts: Sequence[str], *, finish: str = "stop", logprob: float | None = None) -> list[bytes]:
    """Return the events of a whole reply, with the counts (7, number of texts)."""
    chunks = [delta(text, None, logprob) for text in texts]
    return [*map(event, [delta(""), *chunks, delta(None, finish), usage(7, len(texts))]), event(b"[DONE]")]


def streams(
    *parts: bytes | float, whole: bool = True, content_type: str = "text/event-stream", headers: str = ""
) -> Script:
    """Return a script that sends parts of a stream; a number waits so many seconds.

    whole: end the response as HTTP does; else it stays open.
    """

    async def script(writer: asyncio.StreamWriter) -> None:
        writer.write(
            f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{headers}transfer-encoding: chunked\r\n\r\n".encode()
        )
        for part in parts:
            if isinstance(part, bytes):
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if whole:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return script


def speaks(*texts: str, finish: str = "stop", logprob: float | None = None) -> Script:
    """Return a script that answers with these texts."""
    return streams(*events(texts, finish=finish, logprob=logprob))


def replies_with(status: int, body: Any = None, headers: str = "") -> Script:
    """Return a script that answers with a status and JSON, by default an error that repeats the key."""
    data = json.dumps({"error": {"message": SECRET, "param": None, "code": None}} if body is None else body).encode()

    async def script(writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {status} Whatever\r\ncontent-length: {len(data)}\r\ncontent-type: application/json\r\n"
        writer.write((head + headers + "\r\n").encode() + data)
        await writer.drain()

    return script


def breaks_after(*parts: bytes | float) -> Script:
    """Return a script that closes the connection after some parts of a stream, in the middle of the response."""

    async def script(writer: asyncio.StreamWriter) -> None:
        await streams(*parts, whole=False)(writer)
        writer.transport.abort()

    return script


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """Close the connection without a response."""
    writer.close()


async def wait(writer: asyncio.StreamWriter) -> None:
    """Answer nothing."""
    await asyncio.sleep(60)


async def never_end(writer: asyncio.StreamWriter) -> None:
    await streams(whole=False)(writer)
    part = event(delta("word "))
    while True:
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()


async def flood(writer: asyncio.StreamWriter) -> None:
    """Send comments, which hold no text, without end."""
    await streams(whole=False)(writer)
    part = b": nothing\n" * 20_000
    while True:
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()


async def endless_line(writer: asyncio.StreamWriter) -> None:
    await streams(b"data: ", whole=False)(writer)
    part = b"x" * 65_536
    while True:
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()


async def endless_head(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: " + b"x" * 1000 + b"\r\n")
        await writer.drain()
