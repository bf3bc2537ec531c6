"""Fetch a file from a URL within limits on time and size. Other features of HTTP clients are left out on purpose."""

import asyncio
import functools
import io
import logging
import ssl
from collections.abc import Callable
from urllib.parse import urljoin

import httpcore

from serve.errors import BadRequest, TooLarge, Unavailable
from serve.media.budget import Lease
from serve.media.fetch.address import Address, ParsedUrl, literal, parse, public
from serve.media.fetch.dial import Pinned, Resolve, resolve
from serve.media.fetch.policy import Policy

AT_ONCE = 32
"""Files fetched at the same time; each is held in memory up to its limit."""
ROOM_S = 2.0
"""Seconds that an open connection waits for memory for its file."""
REDIRECTS = 3
CONNECT_S = 2.0
"""Seconds to connect to each of an origin's addresses, and for the TLS handshake."""

HEADERS: dict[str | bytes, str | bytes] = {
    "User-Agent": "Diptych",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
}
logging.getLogger("httpcore").setLevel(logging.WARNING)  # at DEBUG it logs URLs, and some hold a signature

_MOVED = (301, 302, 303, 307, 308)
_BROKEN = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError)


class Fetcher:
    """A fetcher of image files. It uses httpcore, which unlike httpx has no proxies, cookies, redirects and encodings.

    images: the hosts that images may be fetched from, a config's `gateway.images`. resolve, permits, tls: replaced in
    tests, for the system's name resolution, the check for public addresses and the certificate authorities.
    """

    def __init__(
        self,
        images: Policy | None = None,
        *,
        resolve: Resolve = resolve,
        permits: Callable[[Address], bool] = public,
        tls: Callable[[], ssl.SSLContext] = httpcore.default_ssl_context,
    ) -> None:
        self.images = images or Policy()
        self._resolve = resolve
        self._permits = permits
        self._tls = functools.cache(tls)  # loading the certificate authorities takes 50 ms
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def fetch(
        self, url: str, param: str, max_bytes: int, within_s: float | None = None, lease: Lease | None = None
    ) -> bytes:
        """Fetch the file at `url`, of at max_bytes `max_bytes`, within `within_s` and the policy's `timeout_s` seconds.

        lease: grows to the file's size before the body is read. Raises BadRequest naming `param`, with the same message
        for every forbidden address, so that it reveals nothing about our network; TooLarge; Unavailable where too many
        files are being fetched, Overloaded where the lease cannot grow.
        """
        seconds = min(self.images.timeout_s, self.images.timeout_s if within_s is None else within_s)
        end = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(end):
                await self._slots.acquire()
        except TimeoutError:
            message = "Too many images are being fetched by their URLs."
            raise Unavailable(message, param=param, code="overloaded") from None
        try:
            async with asyncio.timeout_at(end):
                return await self._follow(url, param, max_bytes, lease)
        except TimeoutError:
            raise _failed(f"it did not arrive within {round(seconds, 2):g} s", param) from None
        except _BROKEN:
            raise _failed("the connection to its server failed or broke off", param) from None
        finally:
            self._slots.release()

    async def _follow(self, url: str, param: str, max_bytes: int, lease: Lease | None) -> bytes:
        for _ in range(REDIRECTS + 1):
            parsed = parse(url)
            if parsed is None or not self.images.permits(parsed):
                raise _refused(param)
            content = await self._get(parsed, await self._resolve_checked(parsed, param), param, max_bytes, lease)
            if isinstance(content, bytes):
                return content
            url = content
        raise _failed(f"it was redirected more than {REDIRECTS} times", param)

    async def _resolve_checked(self, parsed: ParsedUrl, param: str) -> list[str]:
        """Resolve the host's addresses. Raises BadRequest unless all of them are permitted."""
        try:
            names = [parsed.host] if literal(parsed.host) else await self._resolve(parsed.host, parsed.port)
        except OSError:
            names = []
        addresses = [literal(name) for name in names]
        if not addresses or not all(address is not None and self._permitted(address) for address in addresses):
            raise _refused(param)
        return [str(address) for address in addresses]

    def _permitted(self, address: Address) -> bool:
        return self._permits(address) and self.images.permits_address(address)

    async def _get(
        self, parsed: ParsedUrl, addresses: list[str], param: str, max_bytes: int, lease: Lease | None
    ) -> bytes | str:
        """Return the file, or the URL that its server redirects to."""
        url = httpcore.URL(scheme=parsed.scheme, host=parsed.host, port=parsed.port, target=parsed.target)
        tls = await asyncio.to_thread(self._tls) if parsed.scheme == "https" else None
        async with (
            Pinned(addresses) as network,
            httpcore.AsyncConnectionPool(tls, network_backend=network) as pool,
            pool.stream(
                "GET",
                url,
                headers={"Host": parsed.authority(), **HEADERS},
                extensions={"timeout": {"connect": CONNECT_S}},
            ) as response,
        ):
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _MOVED and b"location" in headers:
                return _redirect(parsed, headers[b"location"], param)
            if response.status != 200:
                raise _failed(f"its server answered {response.status}", param)
            if headers.get(b"content-encoding", "identity").lower() != "identity":
                raise _failed("its server sent it compressed, unasked", param)
            declared = headers.get(b"content-length", "")
            size = int(declared[:18]) if declared.isdecimal() else max_bytes
            if size > max_bytes:
                raise _too_large(param, max_bytes)
            if lease is not None:
                await lease.grow(size, asyncio.get_running_loop().time() + ROOM_S, param, arriving=True)
            data = io.BytesIO()  # getvalue() makes no copy
            async for chunk in response.aiter_stream():
                data.write(chunk)
                if data.tell() > size:
                    raise _too_large(param, max_bytes)
            if lease is not None:
                lease.shrink(data.tell())
            return data.getvalue()


def _redirect(parsed: ParsedUrl, location: str, param: str) -> str:
    try:
        return urljoin(parsed.url(), location)  # parsed and checked before it is followed
    except ValueError:
        raise _refused(param) from None


def _refused(param: str) -> BadRequest:
    return BadRequest("The image's URL is not one that this server fetches.", param=param, code="invalid_image_url")


def _failed(why: str, param: str) -> BadRequest:
    return BadRequest(f"The image could not be fetched: {why}.", param=param, code="image_fetch_failed")


def _too_large(param: str, max_bytes: int) -> TooLarge:
    return TooLarge(f"The image file is larger than {max_bytes // 2**20} MB.", param=param, code="image_too_large")
