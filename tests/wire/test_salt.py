"""Caches that engines share between keys: kept apart where that is configured."""

from typing import Any

import pytest
from served import LLAVA, PALIGEMMA, URL, calling, message, picture, router

from serve.api import create_app
from serve.engines import media
from serve.engines.base import Prompt
from serve.engines.fake import FakeEngine
from serve.image import decode
from serve.request_id import CACHE_SALT
from serve.rpc.connection import Connection
from serve.rpc.server import Server
from serve.wire.guard import Access
from serve.wire.keys import Keys

KEYS = Keys(["alice:4lice", "bob:b0b"])
ALICE, BOB = {"authorization": "Bearer 4lice"}, {"authorization": "Bearer b0b"}


@pytest.mark.parametrize("salted", [True, False])
async def test_each_key_has_a_salt_of_its_own_in_every_engine(salted: bool) -> None:
    heard: list[str] = []

    def say(prompt: Prompt) -> str:
        heard.append(CACHE_SALT.get())
        return "red"

    app = create_app(router(FakeEngine(say), FakeEngine(say)), access=Access(keys=KEYS, salted=salted))
    async with calling(app) as client:
        for headers, salt in ((ALICE, "alice"), (BOB, "bob"), (ALICE, "alice")):
            for path, body in (
                ("/v1/tasks/vqa", {"image": URL, "question": "what?"}),
                ("/v1/chat/completions", {"model": LLAVA, "messages": [message()]}),
                ("/v1/chat/completions", {"model": PALIGEMMA, "messages": [message()], "stream": True}),
                ("/v1/chat/completions", {"model": "vqa:*", "messages": [message()]}),
            ):
                heard.clear()
                assert (await client.post(path, json=body, headers=headers)).status_code == 200
                assert set(heard) == {salt if salted else ""}


async def test_a_salt_travels_to_a_replica_with_its_call() -> None:
    async def answer(what: str) -> Any:
        yield what + CACHE_SALT.get()

    async def standing() -> str:
        return "fine"

    server = Server({"answer": answer}, standing)
    connection = await Connection.open("127.0.0.1", await server.start("127.0.0.1"), server.token)
    for salt in ("alice", "", "bob"):
        CACHE_SALT.set(salt)
        assert [item async for item in connection.stream("answer", "x:")] == [f"x:{salt}"]
    connection.close()
    await server.stop()


def test_the_same_picture_has_another_name_for_each_salt() -> None:
    image = decode(picture())
    names, inputs = [], []
    for salt in ("", "alice", "bob"):
        token = CACHE_SALT.set(salt)
        names.append(media.named(image)["multi_modal_uuids"]["image"][0])
        inputs.append(media.salted())
        CACHE_SALT.reset(token)
    assert len(set(names)) == 3 and names[0] == image.digest
    assert inputs == [{}, {"cache_salt": "alice"}, {"cache_salt": "bob"}]
