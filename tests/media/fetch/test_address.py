"""serve.media.fetch.address and policy: the URLs and addresses that may be fetched from. No socket is opened here."""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from serve.media.fetch.address import MAX_URL, ParsedUrl, literal, parse, public
from serve.media.fetch.policy import Policy


@pytest.mark.parametrize(
    "address",
    ["1.1.1.1", "93.184.215.14", "172.32.0.1", "100.128.0.1", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e"]
    + ["64:ff9b::1.1.1.1", "::ffff:1.1.1.1"],
)
def test_public_addresses(address: str) -> None:
    assert public(ip_address(address))


PRIVATE = "0.0.0.0 0.1.2.3 10.1.2.3 100.64.0.1 100.127.255.255 127.0.0.1 127.8.8.8 169.254.1.1 172.16.0.1 172.31.9.9 "
PRIVATE += "192.0.0.1 192.0.0.8 192.0.0.170 192.0.2.1 192.88.99.1 192.168.1.1 198.18.0.1 198.19.255.255 198.51.100.7 "
PRIVATE += "203.0.113.9 224.0.0.1 239.255.255.250 240.0.0.1 255.255.255.255"
METADATA = "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16 192.0.0.192"
PRIVATE_SIX = ":: ::1 100::1 100:0:0:1::1 2001:db8::1 3fff::1 5f00::1 fc00::1 fd12:3456::1 fe80::1 fec0::1 ff02::1 "
PRIVATE_SIX += "ff0e::1 2001::1 2001:2::1 2001:10::1 2001:20::1 4000::1 fd00:ec2::254 fd20:ce::254"


def test_addresses_that_are_not_public() -> None:
    assert [each for each in f"{PRIVATE} {METADATA} {PRIVATE_SIX}".split() if public(ip_address(each))] == []


@pytest.mark.parametrize(
    "tunnel",
    [
        "::ffff:{dotted}",  # IPv4-mapped
        "::{dotted}",  # IPv4-compatible
        "::ffff:0:{dotted}",  # IPv4-translated
        "64:ff9b::{dotted}",  # NAT64
        "64:ff9b:1::{dotted}",  # NAT64 of one's own network
        "2002:{hex}::1",  # 6to4
        "2001:0:101:101::{flipped}",  # Teredo: the client's address, its bits flipped
        "2001:0:{hex}::fefe:fefe",  # Teredo's server
        "2606:4700::5efe:{dotted}",  # ISATAP
        "2606:4700::200:5efe:{dotted}",
        "fe80::5efe:{dotted}",
    ],
)
def test_a_private_address_inside_another(tunnel: str) -> None:
    for inside in (*PRIVATE.split(), *METADATA.split()):
        number = int(IPv4Address(inside))
        flipped = number ^ 0xFFFFFFFF
        parts = {
            "dotted": inside,
            "hex": f"{number >> 16:x}:{number & 0xFFFF:x}",
            "flipped": f"{flipped >> 16:x}:{flipped & 0xFFFF:x}",
        }
        assert not public(IPv6Address(tunnel.format(**parts))), inside


@given(st.ip_addresses())
def test_public_addresses_are_global_for_ipaddress_too(address: IPv4Address | IPv6Address) -> None:
    if public(address) and address not in ip_network("64:ff9b::/96"):
        seen = getattr(address, "ipv4_mapped", None) or address
        assert seen.is_global and not (seen.is_multicast or seen.is_loopback or seen.is_link_local)


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("https://example.com/cat.png", ParsedUrl("https", "example.com", 443, "/cat.png")),
        ("HTTPS://Example.COM", ParsedUrl("https", "example.com", 443, "/")),
        ("https://example.com?a=b", ParsedUrl("https", "example.com", 443, "/?a=b")),
        ("https://example.com:8443/a?b=c&d=%20#part", ParsedUrl("https", "example.com", 8443, "/a?b=c&d=%20")),
        ("http://1.1.1.1/x", ParsedUrl("http", "1.1.1.1", 80, "/x")),
        ("https://[2606:4700:4700:0::1111]/x", ParsedUrl("https", "2606:4700:4700::1111", 443, "/x")),
        ("https://xn--bcher-kva.example/", ParsedUrl("https", "xn--bcher-kva.example", 443, "/")),
        ("https://a.example/@b", ParsedUrl("https", "a.example", 443, "/@b")),
    ],
)
def test_url_is_parsed(url: str, place: ParsedUrl) -> None:
    assert parse(url) == place
    assert parse(place.url()) == place


MALFORMED = [
    *["", "cat.png", "//example.com/", "https:example.com", "https:/example.com", "https:///example.com"],
    *[
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:1",
        "unix:/run/x",
        "data:,x",
    ],
    *["https://user@example.com/", "https://user:word@example.com/", "https://@example.com/"],
    *["https://example.com\\@127.0.0.1/", "https://example.com/\\x", "https:\\\\example.com/", "https://a\\b.c/"],
    *["https://exam ple.com/", " https://example.com/", "https://example.com/a b", "https://example.com/ "],
    *["https://example.com/\n", "https://example.com\t/", "https://example.com/\x00", "https://exa\rmple.com/"],
    *["https://bücher.example/", "https://１２７.0.0.1/", "https://example。com/", "https://ⓔxample.com/"],
    *["https://example.com/ü", "https://example.com/\ud800"],
    *["https://exam%70le.com/", "https://%31%32%37.0.0.1/", "https://127.0.0.1%2f@x/", "https://a_b^c/"],
    *["https://2130706433/", "https://0x7f000001/", "https://0x7f.0.0.1/", "https://0177.0.0.1/", "https://127.1/"],
    *[
        "https://127.0.1/",
        "https://127.0.0.0x1/",
        "https://1.2.3.4.5/",
        "https://127.0.0.1./",
        "https://256.1.1.1/",
    ],
    *["https://00000177.0.0.1/", "https://0x/", "https://a.0x7f/", "https://example.1/", "https://127.0.0.01/"],
    *["https://[::1%25eth0]/", "https://[::1%eth0]/", "https://[1.1.1.1]/", "https://[::1/", "https://::1/"],
    *["https://[::ffff:127.0.0.1]x/", "https://[]/", "https://[v1.a]/", "https://[[::1]]/"],
    *["https://example.com:/", "https://example.com:0/", "https://example.com:65536/", "https://example.com:x/"],
    *["https://example.com:443:443/", "https://example.com:-1/", "https://example.com:٤٤٣/", "https://:443/"],
    *["https://.example.com/", "https://example..com/", "https://example.com./", "https://-a.example/"],
    *["https://a-.example/", "https://" + "a" * 64 + ".example/", "https://" + "a." * 130 + "example/"],
    "https://example.com/" + "a" * MAX_URL,
]


def test_urls_that_are_malformed_or_could_be_read_in_two_ways() -> None:
    assert [url for url in MALFORMED if parse(url) is not None] == []


@given(st.text(max_size=60) | st.from_regex(r"https?://[!-~]{0,40}", fullmatch=True))
def test_any_text_is_refused_or_leads_to_a_plain_host(text: str) -> None:
    for url in (text, f"https://{text}"):
        place = parse(url)
        if place is not None:
            assert place.host.isascii() and not set(place.host) & set("@%\\/?#[] \t\r\n")
            assert literal(place.host) is not None or not place.host.split(".")[-1].isdigit()
            assert place.target.startswith("/") and place.target.isprintable() and " " not in place.target
            assert parse(place.url()) == place


CAT = parse("https://cdn.example.com/cat.png")
assert CAT is not None


@pytest.mark.parametrize(
    ("rules", "permitted"),
    [
        ({}, True),
        ({"schemes": ["http"]}, False),
        ({"schemes": []}, False),
        ({"ports": [8443]}, False),
        ({"allow": ["example.com"]}, False),
        ({"allow": ["*.example.com"]}, True),
        ({"allow": ["other.example", "cdn.example.com"]}, True),
        ({"deny": ["cdn.example.com"]}, False),
        ({"deny": ["example.com"]}, True),
        ({"allow": ["*.example.com"], "deny": ["*.example.com"]}, False),
        ({"allow": ["*.ample.com"]}, False),
    ],
)
def test_policy_permits_urls_by_its_rules(rules: dict[str, object], permitted: bool) -> None:
    assert CAT is not None
    assert Policy.model_validate(rules).permits(CAT) is permitted


SIX = "2001:4860:4860::8888"


@pytest.mark.parametrize(
    ("entry", "hosts"),
    [
        ("8.8.8.8", ["8.8.8.8", "[::ffff:8.8.8.8]", "[::ffff:808:808]", "[64:ff9b::8.8.8.8]"]),
        ("::ffff:8.8.8.8", ["8.8.8.8", "[::ffff:808:808]", "[64:ff9b::8.8.8.8]"]),
        ("2001:4860:4860:0:0:0:0:8888", [f"[{SIX}]", "[2001:4860:4860:0::8888]"]),
        (SIX, [f"[{SIX}]", "[2001:4860:4860:0:0:0:0:8888]"]),
    ],
)
def test_address_of_a_rule_is_meant_in_all_its_spellings(entry: str, hosts: list[str]) -> None:
    for host in hosts:
        place = parse(f"https://{host}/x")
        assert place is not None
        assert Policy(allow=[entry]).permits(place) and not Policy(deny=[entry]).permits(place)
        assert Policy(deny=["8.8.8.9"]).permits(place) and not Policy(allow=["8.8.8.9"]).permits(place)


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808", SIX])
def test_address_that_is_denied_is_refused_in_every_form(address: str) -> None:
    assert not Policy(deny=["8.8.8.8", "2001:4860:4860:0:0:0:0:8888"]).permits_address(ip_address(address))
    assert Policy(deny=["8.8.8.9"]).permits_address(ip_address(address))


def test_http_and_other_ports_only_by_configuration() -> None:
    assert not any(
        Policy().permits(place) for url in ("http://a.example/", "https://a.example:8443/") if (place := parse(url))
    )


@pytest.mark.parametrize(
    "rules",
    [{"allow": ["https://a.example"]}, {"deny": ["A.example"]}, {"ports": [0]}, {"schemes": ["ftp"]}, {"timeout_s": 0}]
    + [{"alow": []}, {"allow": [""]}, {"allow": ["*"]}]
    + [{"deny": [host]} for host in ("8.8.8", "8.8.8.08", "8.8.8.256", "*.8.8.8.8", "::8::8", "2001", "a.example.")],
)
def test_policy_with_an_invalid_rule_is_refused(rules: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Policy.model_validate(rules)
