"""The fetcher against a real server on loopback, which also misbehaves in many ways."""

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from serve.errors import BadRequest, ServeError, TooLarge, Unavailable
from serve.media.fetch.fetcher import AT_ONCE, Fetcher
from serve.media.fetch.policy import Policy
from tests.media.fetch import origin as origins
from tests.media.fetch.certificate import certified
from tests.media.fetch.origin import HOST, Origin, Script, moved, permits, says, serving

MOST = 2**20
NEUTRAL = "The image's URL is not one that this server fetches."


@pytest.fixture
async def origin() -> AsyncIterator[Origin]:
    async with serving() as origin:
        origin.scripts["/cat.png"] = says(b"a cat")
        yield origin


async def refusal(fetcher: Fetcher, url: str, most: int = MOST) -> ServeError:
    with pytest.raises(ServeError) as caught:
        await fetcher.fetch(url, "messages[0].content[0].image_url", most)
    assert caught.value.param == "messages[0].content[0].image_url"
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)
    return caught.value


async def refused(fetcher: Fetcher, url: str) -> None:
    error = await refusal(fetcher, url)
    assert isinstance(error, BadRequest)
    assert (error.message, error.code) == (NEUTRAL, "invalid_image_url")


async def test_file_is_fetched_unchanged_with_a_single_plain_request(
    origin: Origin, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with caplog.at_level(logging.DEBUG):
        assert await origin.fetcher().fetch(origin.url("/cat.png#part"), "image", MOST) == b"a cat"
    assert "cat.png" not in caplog.text
    (head,) = origin.heads
    lines = head.lower().split("\r\n")
    assert lines[0] == "get /cat.png http/1.1"
    assert f"host: {HOST}:{origin.port}" in lines and "accept-encoding: identity" in lines
    assert not [line for line in lines if line.startswith(("cookie", "authorization", "referer", "proxy"))]


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
async def test_redirects_are_followed_and_carry_nothing_along(origin: Origin, status: str) -> None:
    origin.scripts["/a"] = moved("b?c=d", status)
    origin.scripts["/b?c=d"] = moved(origin.url("/cat.png"))
    assert await origin.fetcher().fetch(origin.url("/a"), "image", MOST) == b"a cat"
    assert len(origin.heads) == 3 and "crumb" not in "".join(origin.heads)


async def test_three_redirects_and_no_more(origin: Origin) -> None:
    for at in range(4):
        origin.scripts[f"/{at}"] = moved(f"/{at + 1}")
    origin.scripts["/4"] = says(b"a cat")
    assert await origin.fetcher().fetch(origin.url("/1"), "image", MOST) == b"a cat"
    error = await refusal(origin.fetcher(), origin.url("/0"))
    assert "redirected more than 3 times" in error.message


@pytest.mark.parametrize(
    "location",
    [
        *["http://127.0.0.2/", "http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/"],
        *["file:///etc/passwd", "ftp://pictures.example/", "//10.0.0.1/x", "http://2130706433/", "http://a@b.example/"],
        *[
            "http://nowhere.example/",
            "http://inside.example/",
            "http://[",
            "http://pictures.example:1/",
            "\\\\10.0.0.1",
        ],
        *["http://pictures.example\\@10.0.0.1/", "http://xn--a.example/\xe9", ""],
    ],
)
async def test_a_redirect_is_checked_like_the_url(origin: Origin, location: str) -> None:
    origin.scripts["/a"] = moved(location)
    fetcher = origin.fetcher({HOST: ["127.0.0.1"], "inside.example": ["10.0.0.1"]}, ports=[origin.port, 80])
    if location == "":
        origin.scripts["/a"] = says(b"", "302 Found")
        assert "answered 302" in (await refusal(fetcher, origin.url("/a"))).message
    else:
        await refused(fetcher, origin.url("/a"))
    assert len(origin.heads) == 1


@pytest.mark.parametrize(
    "addresses",
    [
        [],
        ["10.0.0.1"],
        ["127.0.0.1", "10.0.0.1"],
        ["127.0.0.1", "::1"],
        ["127.0.0.1", "fe80::1%eth0"],
        ["127.0.0.1", "::ffff:10.0.0.1"],
        ["127.0.0.1", "not an address"],
    ],
)
async def test_host_with_any_address_that_is_not_public_is_refused(origin: Origin, addresses: list[str]) -> None:
    await refused(origin.fetcher({HOST: addresses}), origin.url())
    assert origin.heads == []


@pytest.mark.parametrize("addresses", [["8.8.8.8"], ["127.0.0.1", "8.8.8.8"], ["::ffff:8.8.8.8"], ["64:ff9b::808:808"]])
async def test_name_of_a_denied_address_is_refused(origin: Origin, addresses: list[str]) -> None:
    origin.scripts["/a"] = moved("//other.example/cat.png")
    names = {HOST: ["127.0.0.1"], "other.example": addresses}
    fetcher = origin.fetcher(names, deny=["8.8.8.8"], ports=[origin.port, 80])
    await refused(fetcher, origin.url(host="other.example"))
    assert origin.heads == []
    await refused(fetcher, origin.url("/a"))
    assert len(origin.heads) == 1


async def test_name_is_not_allowed_by_its_address(origin: Origin) -> None:
    fetcher = origin.fetcher(allow=["127.0.0.1"])
    await refused(fetcher, origin.url())
    assert await fetcher.fetch(origin.url("/cat.png", host="127.0.0.1"), "image", MOST) == b"a cat"


async def test_every_refusal_has_the_same_message(origin: Origin) -> None:
    fetcher = origin.fetcher({"inside.example": ["10.0.0.1"], HOST: ["127.0.0.1"]}, deny=["denied.example"])
    port = origin.port
    for url in (
        f"http://inside.example:{port}/",
        f"http://nowhere.example:{port}/",
        f"http://denied.example:{port}/",
        f"http://10.0.0.1:{port}/",
        f"http://[::1]:{port}/",
        f"http://user@pictures.example:{port}/",
        "http://pictures.example:1/",
        "https://",
    ):
        await refused(fetcher, url)
    assert origin.heads == []


async def test_connection_goes_to_the_checked_address(origin: Origin) -> None:
    """A name that leads elsewhere the second time is not asked about a second time."""
    answers = [["127.0.0.1"], ["10.0.0.1"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    policy = Policy(schemes=["http"], ports=[origin.port])
    fetcher = Fetcher(policy, resolve=resolve, permits=permits)
    assert await fetcher.fetch(origin.url(), "image", MOST) == b"a cat"
    assert answers == [["10.0.0.1"]]
    await refused(fetcher, origin.url())


async def test_a_name_that_changes_between_redirects_is_checked_anew(origin: Origin) -> None:
    answers = [["127.0.0.1"], ["169.254.169.254"]]

    async def resolve(host: str, port: int) -> Sequence[str]:
        return answers.pop(0)

    origin.scripts["/a"] = moved("/cat.png")
    policy = Policy(schemes=["http"], ports=[origin.port])
    await refused(Fetcher(policy, resolve=resolve, permits=permits), origin.url("/a"))
    assert len(origin.heads) == 1


async def test_a_host_with_a_dead_address_is_reached_at_its_next(origin: Origin) -> None:
    async with serving() as closed:
        dead = closed.port
    assert dead != origin.port  # 127.0.0.3 has no listener at the origin's port
    fetcher = Fetcher(
        Policy(schemes=["http"], ports=[origin.port]),
        resolve=lambda host, port: asyncio.sleep(0, ["127.0.0.3", "127.0.0.1"]),
        permits=lambda address: address.is_loopback,
    )
    assert await fetcher.fetch(origin.url(), "image", MOST) == b"a cat"


async def test_default_fetcher_refuses_this_machines_addresses(origin: Origin) -> None:
    fetcher = Fetcher(Policy(schemes=["http"], ports=[origin.port]))
    for host in ("127.0.0.1", "localhost"):
        await refused(fetcher, origin.url(host=host))
    assert origin.heads == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "says"),
    [
        (origins.hang, "did not arrive within 0.3 s"),
        (origins.drip, "did not arrive within 0.3 s"),
        (origins.reset, "failed or broke off"),
        (origins.endless_head, "failed or broke off"),
        (origins.squeezed(b"a cat"), "sent it compressed"),
        (origins.squeezed(b"\x00" * 2**24), "sent it compressed"),
        (says(b"", "404 Not Found"), "answered 404"),
        (says(b"", "500 Internal Server Error"), "answered 500"),
        (says(b"", "204 No Content"), "answered 204"),
        (says(b"part", "206 Partial Content"), "answered 206"),
        (says(b"a cat", content_length="99"), "failed or broke off"),
        *(
            (says(b"a cat", content_length=size), "failed or broke off")
            for size in ("-1", "5" * 5000, "\u00b2", "5, 6")
        ),
        (says(b"a cat", transfer_encoding="chunked"), "failed or broke off"),
        (moved("/bad"), "redirected more than 3 times"),
    ],
)
async def test_an_origin_that_misbehaves(origin: Origin, script: Script, says: str) -> None:
    origin.scripts["/bad"] = script
    began = time.monotonic()
    error = await refusal(origin.fetcher(timeout_s=0.3), origin.url("/bad"))
    assert isinstance(error, BadRequest) and error.code == "image_fetch_failed" and says in error.message
    assert time.monotonic() - began < 2
    async with asyncio.timeout(5):
        while origin.open:  # the connection is closed, not left behind
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("script", [origins.endless, says(b"x" * 4097), says(b"", content_length=str(10**12))])
async def test_body_beyond_the_limit_is_not_read_further(origin: Origin, script: Script) -> None:
    origin.scripts["/large"] = script
    error = await refusal(origin.fetcher(), origin.url("/large"), most=4096)
    assert isinstance(error, TooLarge) and (error.status, error.code) == (413, "image_too_large")
    origin.scripts["/fits"] = says(b"x" * 4096)
    assert len(await origin.fetcher().fetch(origin.url("/fits"), "image", 4096)) == 4096


async def test_a_server_that_does_not_speak_http_or_is_not_there(origin: Origin) -> None:
    async def smtp(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")

    origin.scripts["/bad"] = smtp
    assert "broke off" in (await refusal(origin.fetcher(), origin.url("/bad"))).message
    async with serving() as gone:
        pass
    assert "broke off" in (await refusal(gone.fetcher(), gone.url())).message


@pytest.mark.slow
async def test_a_handshake_that_hangs_leaves_no_connection_behind(origin: Origin) -> None:
    error = await refusal(origin.fetcher(timeout_s=0.3), origin.url(scheme="https"))  # nobody there speaks TLS
    assert "did not arrive" in error.message
    async with asyncio.timeout(5):
        while origin.open:
            await asyncio.sleep(0.01)


async def test_the_certificate_is_that_of_the_host_and_not_of_the_address(tmp_path: Path) -> None:
    certificate, key = certified(HOST, tmp_path)
    host_names: list[str | None] = []
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    tls.sni_callback = lambda connection, name, context: host_names.append(name)
    async with serving(tls) as origin:
        origin.scripts["/cat.png"] = says(b"a cat")
        names = {HOST: ["127.0.0.1"], "other.example": ["127.0.0.1"]}
        trusting = origin.fetcher(names, tls=lambda: ssl.create_default_context(cafile=str(certificate)))
        assert await trusting.fetch(origin.url(scheme="https"), "image", MOST) == b"a cat"
        assert host_names == [HOST]
        for fetcher, host in ((trusting, "other.example"), (trusting, "127.0.0.1"), (origin.fetcher(names), HOST)):
            error = await refusal(fetcher, origin.url(scheme="https", host=host))
            assert "failed or broke off" in error.message
        assert len(origin.heads) == 1


async def test_a_name_server_that_hangs(origin: Origin) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    fetcher = Fetcher(Policy(schemes=["http"], ports=[origin.port], timeout_s=0.1), resolve=resolve, permits=permits)
    assert "did not arrive within 0.1 s" in (await refusal(fetcher, origin.url())).message


@pytest.mark.slow
async def test_shorter_deadline_of_the_request_wins(origin: Origin) -> None:
    origin.scripts["/bad"] = origins.hang
    with pytest.raises(BadRequest, match=r"did not arrive within 0\.2 s"):
        await origin.fetcher(timeout_s=30).fetch(origin.url("/bad"), "image", MOST, within_s=0.2)


async def test_leaving_closes_the_connection(origin: Origin) -> None:
    origin.scripts["/slow"] = origins.drip
    job = asyncio.create_task(origin.fetcher(timeout_s=30).fetch(origin.url("/slow"), "image", MOST))
    async with asyncio.timeout(5):
        while not origin.heads:
            await asyncio.sleep(0.01)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    async with asyncio.timeout(5):
        while origin.open:
            await asyncio.sleep(0.01)


async def test_fetches_beyond_the_limit_wait_and_are_then_refused(origin: Origin) -> None:
    go = asyncio.Event()

    async def held_back(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        await origin.scripts["/cat.png"](reader, writer)

    origin.scripts["/slow"] = held_back
    fetcher = origin.fetcher(timeout_s=30)
    jobs = [asyncio.create_task(fetcher.fetch(origin.url("/slow"), "image", MOST)) for _ in range(AT_ONCE + 1)]
    async with asyncio.timeout(20):
        while len(origin.heads) < AT_ONCE:
            await asyncio.sleep(0.01)
    with pytest.raises(Unavailable) as caught:
        await fetcher.fetch(origin.url(), "image", MOST, within_s=0.01)
    assert (caught.value.status, caught.value.code) == (503, "overloaded")
    assert len(origin.heads) == AT_ONCE
    go.set()
    assert await asyncio.gather(*jobs) == [b"a cat"] * (AT_ONCE + 1)
