"""One file from one URL, within a time and a size, and nothing else of what an HTTP client can do."""

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
from serve.media.fetch.address import Address, Place, literal, parse, public
from serve.media.fetch.dial import Pinned, Resolve, resolve
from serve.media.fetch.policy import Policy

AT_ONCE = 32
"""Files on their way at the same time; each is held in memory, up to its cap."""
ROOM_S = 2.0
"""How long a file waits for room in memory, its connection open."""
REDIRECTS = 3
CONNECT_S = 2.0
"""For each of an origin's addresses, and for its TLS handshake."""

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
    """httpcore and not httpx: it knows no proxy, cookie, redirect or encoding that it would have to be forbidden.

    images: from where images may be fetched, a config's `gateway.images`. resolve, permits, tls: what tests put in the
    place of the system's names, public addresses and authorities.
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
        self._tls = functools.cache(tls)  # reading the authorities takes 50 ms
        self._seats = asyncio.Semaphore(AT_ONCE)

    async def fetch(
        self, url: str, param: str, most: int, within_s: float | None = None, lease: Lease | None = None
    ) -> bytes:
        """The file at `url`, at most `most` bytes of it, within `within_s` and the policy's own time.

        lease: grows to the file's size before that is read. Raises BadRequest naming `param`, in the same words for
        whatever we will not connect to, so that nobody learns from them what is in our network; TooLarge; Unavailable
        where too many are being fetched, Overloaded where the lease cannot grow.
        """
        seconds = min(self.images.timeout_s, self.images.timeout_s if within_s is None else within_s)
        end = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(end):
                await self._seats.acquire()
        except TimeoutError:
            said = "Too many images are being fetched by their URLs."
            raise Unavailable(said, param=param, code="overloaded") from None
        try:
            async with asyncio.timeout_at(end):
                return await self._followed(url, param, most, lease)
        except TimeoutError:
            raise _failed(f"it did not arrive within {round(seconds, 2):g} s", param) from None
        except _BROKEN:
            raise _failed("the connection to its server failed or broke off", param) from None
        finally:
            self._seats.release()

    async def _followed(self, url: str, param: str, most: int, lease: Lease | None) -> bytes:
        for _ in range(REDIRECTS + 1):
            place = parse(url)
            if place is None or not self.images.permits(place):
                raise _refused(param)
            found = await self._got(place, await self._checked(place, param), param, most, lease)
            if isinstance(found, bytes):
                return found
            url = found
        raise _failed(f"it was redirected more than {REDIRECTS} times", param)

    async def _checked(self, place: Place, param: str) -> list[str]:
        """The host's addresses, resolved once. One that is not public condemns the others."""
        try:
            known = [place.host] if literal(place.host) else await self._resolve(place.host, place.port)
        except OSError:
            known = []
        addresses = [literal(one) for one in known]
        if not addresses or not all(address is not None and self._permits(address) for address in addresses):
            raise _refused(param)
        return [str(address) for address in addresses]

    async def _got(self, place: Place, addresses: list[str], param: str, most: int, lease: Lease | None) -> bytes | str:
        """The file, or the URL that its server names instead."""
        url = httpcore.URL(scheme=place.scheme, host=place.host, port=place.port, target=place.target)
        tls = await asyncio.to_thread(self._tls) if place.scheme == "https" else None
        async with (
            Pinned(addresses) as network,
            httpcore.AsyncConnectionPool(tls, network_backend=network) as pool,
            pool.stream(
                "GET",
                url,
                headers={"Host": place.authority(), **HEADERS},
                extensions={"timeout": {"connect": CONNECT_S}},
            ) as response,
        ):
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _MOVED and b"location" in headers:
                return _joined(place, headers[b"location"], param)
            if response.status != 200:
                raise _failed(f"its server answered {response.status}", param)
            if headers.get(b"content-encoding", "identity").lower() != "identity":
                raise _failed("its server sent it compressed, unasked", param)
            declared = headers.get(b"content-length", "")
            size = int(declared[:18]) if declared.isdecimal() else most
            if size > most:
                raise _too_large(param, most)
            if lease is not None:
                await lease.grow(size, asyncio.get_running_loop().time() + ROOM_S, param, arriving=True)
            data = io.BytesIO()  # whose bytes are taken out without a copy
            async for chunk in response.aiter_stream():
                data.write(chunk)
                if data.tell() > size:
                    raise _too_large(param, most)
            if lease is not None:
                lease.shrink(data.tell())
            return data.getvalue()


def _joined(place: Place, location: str, param: str) -> str:
    try:
        return urljoin(place.url(), location)  # parsed and checked as a whole before anything is done with it
    except ValueError:
        raise _refused(param) from None


def _refused(param: str) -> BadRequest:
    return BadRequest("The image's URL is not one that this server fetches.", param=param, code="invalid_image_url")


def _failed(why: str, param: str) -> BadRequest:
    return BadRequest(f"The image could not be fetched: {why}.", param=param, code="image_fetch_failed")


def _too_large(param: str, most: int) -> TooLarge:
    return TooLarge(f"The image file is larger than {most // 2**20} MB.", param=param, code="image_too_large")
