"""Resolve names, and connect to checked addresses only."""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpcore

TRIES = 3
"""Addresses of a host that are tried, one after the other."""

# Threads of its own, so that a name server that hangs does not delay the decoding of images.
_RESOLVING = ThreadPoolExecutor(16, "resolve")

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""(host, port) -> its addresses. Raises OSError where there are none."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """Resolve a name as the system does. Raises OSError."""
    addresses = await asyncio.get_running_loop().run_in_executor(_RESOLVING, _addresses, host, port)
    return list(dict.fromkeys(addresses))


def _addresses(host: str, port: int) -> list[str]:
    return [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]


async def connect_to_first(
    addresses: Sequence[str], connect: Callable[[str], Awaitable[httpcore.AsyncNetworkStream]]
) -> httpcore.AsyncNetworkStream:
    """Return a connection to the first of the addresses that takes one. Raises what the last of them raised."""
    failure: Exception = httpcore.ConnectError()
    for address in addresses:
        try:
            return await connect(address)
        except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
            failure = error
    raise failure


class Pinned(httpcore.AsyncNetworkBackend):
    """A network backend that connects to given addresses whatever the host, since resolving its name again could return
    other ones. TLS still verifies the host.

    Use it in an `async with`, which closes all connections: httpcore leaks one that is cancelled during its handshake.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = addresses[:TRIES]
        self._network = httpcore.AnyIOBackend()
        self._opened: list[httpcore.AsyncNetworkStream] = []

    async def __aenter__(self) -> "Pinned":
        return self

    async def __aexit__(self, *_: object) -> None:
        for stream in self._opened:
            await stream.aclose()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        def connect(address: str) -> Awaitable[httpcore.AsyncNetworkStream]:
            return self._network.connect_tcp(address, port, timeout, local_address, socket_options)

        stream = await connect_to_first(self.addresses, connect)
        self._opened.append(stream)
        return stream
