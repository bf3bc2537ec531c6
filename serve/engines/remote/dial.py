"""Connect to a host that the operator named, at whatever addresses it has."""

import asyncio
from collections.abc import Iterable

import httpcore

from serve.media.fetch.address import literal, public
from serve.media.fetch.dial import TRIES, Resolve, connect_to_first, resolve


class UnprotectedKey(Exception):
    """A key would be sent to a public address without TLS."""


class NamedHost(httpcore.AsyncNetworkBackend):
    """A network backend for the host of an operator's config, which may be private, as a server on this machine is.

    private: refuse public addresses, because a key would be readable on the way.
    """

    def __init__(self, *, private: bool, resolve: Resolve = resolve) -> None:
        self._private = private
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within `timeout` seconds. Raises httpcore.ConnectError, ConnectTimeout or UnprotectedKey."""
        try:
            async with asyncio.timeout(timeout):
                names = [host] if literal(host) else await self._resolve(host, port)
                addresses = [address for name in names if (address := literal(name))][:TRIES]
                if self._private and any(map(public, addresses)):
                    raise UnprotectedKey
                stream = await connect_to_first(
                    [str(address) for address in addresses],
                    lambda address: self._network.connect_tcp(address, port, None, None, socket_options),
                )
                return _PlainStream(stream)
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except OSError:
            raise httpcore.ConnectError from None


class _PlainStream(httpcore.AsyncNetworkStream):
    """A stream that is closed where its TLS handshake is cancelled: httpcore would leak it."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self.read, self.write = stream.read, stream.write  # type: ignore[method-assign]
        self.aclose, self.get_extra_info = stream.aclose, stream.get_extra_info  # type: ignore[method-assign]

    async def start_tls(self, *arguments: object, **options: object) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(*arguments, **options)  # type: ignore[arg-type]
        except BaseException:
            await self._stream.aclose()
            raise
