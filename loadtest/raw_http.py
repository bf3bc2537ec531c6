"""An HTTP/1.1 exchange over a socket of its own: also requests that no ordinary client would send."""

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PIECE = 1 << 20
"""Bytes of a body that are handed to the kernel at once."""
BOUNDARY = "hostile0000000000000000"


@dataclass(frozen=True)
class Request:
    """A request. pieces: the number of parts in which its body is sent, `pause_s` seconds apart. behind: bytes that
    follow it on the same connection. leave_s: the client leaves so many seconds after all was sent."""

    method: str
    path: str
    body: bytes = b""
    headers: Sequence[tuple[str, str]] = ()
    pieces: int = 1
    pause_s: float = 0.0
    behind: bytes = b""
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
class Response:
    """A response. status: 0 where the connection broke before there was one, None where the client left as meant.

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


def form(path: str, fields: dict[str, str], boundary: str = BOUNDARY, **files: bytes) -> Request:
    """Return a multipart request."""
    part = f'--{boundary}\r\ncontent-disposition: form-data; name="'
    body = [f'{part}{name}"\r\n\r\n{value}\r\n'.encode() for name, value in fields.items()]
    for name, data in files.items():
        body += [f'{part}{name}"; filename="a"\r\n\r\n'.encode(), data, b"\r\n"]
    body.append(f"--{boundary}--\r\n".encode())
    return Request("POST", path, b"".join(body), [("content-type", f"multipart/form-data; boundary={boundary}")])


async def exchange(host: str, port: int, request: Request, within_s: float) -> Response:
    """Send the request and read the first response to its end. Errors become its `trouble`."""
    response = Response()
    began = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_connection(host, port, limit=PIECE)
            sending = asyncio.create_task(_send(writer, request, f"{host}:{port}"))
            reading = asyncio.create_task(_read(reader, response, request.method))
            try:
                if request.leave_s is not None:
                    await sending
                    await asyncio.wait((reading,), timeout=request.leave_s)
                    response.status = response.status or None
                else:
                    await reading
            finally:
                writer.transport.abort()
                sending.cancel()
                reading.cancel()
                await asyncio.gather(sending, reading, return_exceptions=True)
    except TimeoutError:
        response.trouble = f"no whole answer within {within_s:g} s"
    except (OSError, EOFError, ValueError) as error:
        response.trouble = type(error).__name__
    response.seconds = asyncio.get_running_loop().time() - began
    return response


async def _send(writer: asyncio.StreamWriter, request: Request, host: str) -> None:
    """Write head and body. A server that takes no more has sent the reason, which the reader has."""
    with contextlib.suppress(ConnectionError):
        writer.write(request.head(host))
        size = max(1, -(-len(request.body) // request.pieces)) if request.pieces > 1 else PIECE
        for start in range(0, len(request.body), size):
            if start and request.pause_s:
                await asyncio.sleep(request.pause_s)
            writer.write(request.body[start : start + size])
            await writer.drain()
        await writer.drain()
        if request.behind:
            await asyncio.sleep(0.02)
            writer.write(request.behind)
            await writer.drain()


async def _read(reader: asyncio.StreamReader, response: Response, method: str) -> None:
    """Read one response: by its length or its chunks."""
    status = 100
    while status == 100:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
    pairs = (line.partition(":") for line in lines if line)
    response.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if response.headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readline()
        await reader.readline()
        response.body = b"".join(parts)
    elif method != "HEAD":
        response.body = await reader.readexactly(int(response.headers.get("content-length", "0")))
    response.status = status
