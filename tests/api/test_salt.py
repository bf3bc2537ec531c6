"""Cache salts, which keep the engine caches of different keys apart where that is configured."""

from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, picture, router

from serve.api.app import create_app
from serve.api.authentication import Access
from serve.api.keys import Keys
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.engines.vllm import multimodal
from serve.media.image import decode_image
from serve.tracing import CACHE_SALT
from serve.transport.connection import Connection
from serve.transport.server import StreamServer

KEYS = Keys(["alice:4lice", "bob:b0b"])
ALICE, BOB = {"authorization": "Bearer 4lice"}, {"authorization": "Bearer b0b"}


@pytest.mark.parametrize("salted", [True, False])
async def test_each_key_has_its_own_salt_in_every_engine(salted: bool) -> None:
    salts: list[str] = []

    def say(prompt: Prompt) -> str:
        salts.append(CACHE_SALT.get())
        return "red"

    app = create_app(router(FakeEngine(say), FakeEngine(say)), access=Access(keys=KEYS, salt_caches=salted))
    async with calling(app) as client:
        for headers, salt in ((ALICE, "alice"), (BOB, "bob"), (ALICE, "alice")):
            for path, body in (
                ("/v1/tasks/vqa", {"image": URL, "question": "what?"}),
                ("/v1/chat/completions", {"model": LLAVA, "messages": [message()]}),
                ("/v1/chat/completions", {"model": PALIGEMMA, "messages": [message()], "stream": True}),
                ("/v1/chat/completions", {"model": "vqa:*", "messages": [message()]}),
            ):
                salts.clear()
                assert (await client.post(path, json=body, headers=headers)).status_code == 200
                assert set(salts) == {salt if salted else ""}


async def test_salt_reaches_the_replica_with_its_call() -> None:
    async def answer(what: str) -> Any:
        yield what + CACHE_SALT.get()

    async def statuses() -> str:
        return "fine"

    server = StreamServer({"answer": answer}, statuses)
    connection = await Connection.open("127.0.0.1", await server.start("127.0.0.1"), server.token)
    for salt in ("alice", "", "bob"):
        CACHE_SALT.set(salt)
        assert [item async for item in connection.stream("answer", "x:")] == [f"x:{salt}"]
    connection.close()
    await server.stop()


def test_image_has_another_cache_name_for_each_salt() -> None:
    image = decode_image(picture())
    names, inputs = [], []
    for salt in ("", "alice", "bob"):
        token = CACHE_SALT.set(salt)
        names.append(multimodal.cached_input(image)["multi_modal_uuids"]["image"][0])
        inputs.append(multimodal.cache_salt())
        CACHE_SALT.reset(token)
    assert len(set(names)) == 3 and names[0] == image.digest
    assert inputs == [{}, {"cache_salt": "alice"}, {"cache_salt": "bob"}]
