"""An origin server on loopback that serves images, and misbehaves by path."""

import asyncio
import gzip
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpcore

from serve.media.fetch.address import Address, public
from serve.media.fetch.fetcher import Fetcher
from serve.media.fetch.policy import Policy

HOST = "pictures.example"
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Origin:
    """A server. scripts: by path, called after the request's head was read. heads: the heads of all requests so far."""

    port: int = 0
    scripts: dict[str, Script] = field(default_factory=dict)
    heads: list[str] = field(default_factory=list)
    open: int = 0

    def url(self, path: str = "/cat.png", host: str = HOST, scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def fetcher(
        self,
        names: Mapping[str, Sequence[str]] | None = None,
        tls: Callable[[], ssl.SSLContext] = httpcore.default_ssl_context,
        **policy: object,
    ) -> Fetcher:
        """Return a fetcher that resolves this origin's name and may connect to 127.0.0.1, on this origin's port
        only."""
        names = {HOST: ["127.0.0.1"]} if names is None else names

        async def resolve(host: str, port: int) -> Sequence[str]:
            if host not in names:
                raise OSError("no such name")
            return names[host]

        rules = {"schemes": ["http", "https"], "ports": [self.port], "timeout_s": 2.0} | policy
        return Fetcher(Policy.model_validate(rules), resolve=resolve, permits=permits, tls=tls)

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            self.heads.append(head)
            await self.scripts[head.split(" ", 2)[1]](reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the fetcher hung up
        finally:
            writer.close()
            self.open -= 1


def permits(address: Address) -> bool:
    """Permit 127.0.0.1 beside all public addresses."""
    return str(address) == "127.0.0.1" or public(address)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Origin]:
    origin = Origin()
    server = await asyncio.start_server(origin.answer, "127.0.0.1", 0, ssl=tls)
    origin.port = server.sockets[0].getsockname()[1]
    try:
        yield origin
    finally:
        server.close()


def says(body: bytes, status: str = "200 OK", **headers: str) -> Script:
    lines = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())

    async def script(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body)
        await writer.drain()

    return script


def moved(location: str, status: str = "302 Found") -> Script:
    return says(b"", status, location=location, set_cookie="crumb=1")


def squeezed(body: bytes) -> Script:
    return says(gzip.compress(body), content_encoding="gzip")


async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
    await reader.read()  # until the other side hangs up


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x")
        await writer.drain()
        await asyncio.sleep(0.01)


async def endless(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


async def endless_head(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x-more: " + b"x" * 1000 + b"\r\n")
        await writer.drain()


async def reset(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nabc")
    await writer.drain()
    writer.transport.abort()
