"""Task forms: lists in three formats, charsets, boundaries."""

import json

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import LLAVA, PALIGEMMA, calling, picture, plain, served

from serve.engines.fake import FakeEngine

PART = b'--b\r\ncontent-disposition: form-data; name="question"\r\n\r\nwhat?\r\n--b--\r\n'


async def detect(**fields: str | list[str]) -> httpx.Response:
    async with calling(served(FakeEngine("<none>"), FakeEngine("<loc0000>"))) as client:
        return await client.post("/v1/tasks/detect", data=fields, files={"image": picture()})


async def labels(field: str | list[str]) -> list[str]:
    """Return the phrases in the prompts, in order."""
    prompts: list[str] = []

    def say(prompt: object) -> str:
        prompts.append(prompt.text)  # type: ignore[attr-defined]
        return "nothing"

    async with calling(served(paligemma=FakeEngine(say))) as client:
        fields = {"labels": field, "models": PALIGEMMA}
        reply = await client.post("/v1/tasks/detect", data=fields, files={"image": picture()})
    assert reply.status_code in (200, 503), reply.text
    return prompts[0].removeprefix("detect ").strip().split(" ; ")


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ('["grey cat", "old dog"]', ["grey cat", "old dog"]),
        (' [ "red, round cat" ,"old dog"] ', ["red, round cat", "old dog"]),
        ('["s\\u00e4ule"]', ["säule"]),
        ("[sic] mark; dog", ["sic] mark", "dog"]),  # no JSON; prompts have phrases without surrounding punctuation
        ("grey cat; old dog", ["grey cat", "old dog"]),
        (["grey cat", "old dog"], ["grey cat", "old dog"]),
        (["grey cat", "", "old dog"], ["grey cat", "old dog"]),
    ],
)
async def test_list_may_be_json_repeated_fields_or_separated_text(field: str | list[str], expected: list[str]) -> None:
    assert await labels(field) == expected


@pytest.mark.parametrize(
    "field", ['["a cat"', '["a cat",]', '[""]', "[1, 2]", '[["a"]]', '[{"a": 1}]', "[]", "[" * 5000]
)
async def test_broken_json_list_is_refused_by_field(field: str) -> None:
    reply = await detect(labels=field)
    assert reply.status_code == 400 and reply.json()["error"]["param"].startswith("labels")


async def test_models_may_be_a_json_list() -> None:
    async with calling(plain()) as client:
        fields = {"question": "what?", "models": json.dumps([LLAVA])}
        reply = await client.post("/v1/tasks/vqa", data=fields, files={"image": picture()})
    assert [column["model"] for column in reply.json()["replies"]] == [LLAVA]


@pytest.mark.parametrize(
    "charset",
    [
        "undefined",
        "idna; boundary=" + "x" * 70,
        "punycode",
        "rot13",
        "hex",
        "zlib",
        "unicode_escape",
        "utf-7",
        "utf-16",
        "cp037",
        "mbcs",
        "nobody-knows",
        "x" * 5000,
        "../../etc/passwd",
        '"a b"',
        "\x80\xff",
    ],
)
async def test_unknown_charset_is_refused(charset: str) -> None:
    long_label = b'--b\r\ncontent-disposition: form-data; name="' + b"q" * 300 + b'.x"\r\n\r\n\xff\xfe\r\n' + PART
    kind = f"multipart/form-data; boundary=b; charset={charset}".encode("latin-1")
    async with calling(plain()) as client:
        reply = await client.post("/v1/tasks/vqa", content=long_label, headers=[(b"content-type", kind)])
    assert reply.status_code == 400 and len(reply.text) < 400
    assert "charset" in reply.json()["error"]["message"]


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii", "ISO-8859-1", "latin1"])
async def test_known_charsets_are_accepted(charset: str) -> None:
    file = b'--b\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n' + picture() + b"\r\n"
    kind = f"multipart/form-data; boundary=b; charset={charset}"
    async with calling(plain()) as client:
        reply = await client.post("/v1/tasks/vqa", content=file + PART, headers={"content-type": kind})
    assert reply.status_code == 200, reply.text


@pytest.mark.parametrize(
    "kind",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "b" * 5000,
        "multipart/form-data; boundary*=utf-8''b%00",
        "multipart/form-data; boundary=b; boundary=c",
        "multipart/form-data; charset",
        "multipart/form-data; =;;;",
        "multipart/form-data;;boundary=\xff",
        "multipart/form-data-x; boundary=b",
        "multipart/mixed; boundary=b",
        "application/x-www-form-urlencoded",
        "text/plain; charset=undefined",
        "application/json; charset=utf-16",
        "multipart/form-data, application/json",
        ";",
        "",
        "\xff\xfe",
        "a" * 20_000,
    ],
)
async def test_any_content_type_gives_no_server_error(kind: str) -> None:
    async with calling(plain()) as client:
        headers = [(b"content-type", kind.encode("latin-1"))]
        for body in (PART, b"", b"--b", b"--\r\n\r\n" + PART):
            reply = await client.post("/v1/tasks/vqa", content=body, headers=headers)
            assert 400 <= reply.status_code < 500, (kind, reply.text)
            assert len(reply.text) < 1500 and reply.json()["error"]["message"]


@pytest.mark.slow
@given(
    st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=30),
    st.sampled_from(["charset", "boundary", "charset*", "boundary*0", "charset*0*", "filename"]),
)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
async def test_no_parameter_of_a_form_gives_a_500(value: str, name: str) -> None:
    kind = f"multipart/form-data; boundary=b; {name}={value}".encode("latin-1")
    async with calling(plain()) as client:
        reply = await client.post("/v1/tasks/vqa", content=PART, headers=[(b"content-type", kind)])
    assert 400 <= reply.status_code < 500, reply.text
