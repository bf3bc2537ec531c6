"""Pictures on their way to vLLM's engine."""

import pytest

from serve.engines.vllm import engine

zmq, zmq_asyncio = pytest.importorskip("zmq"), pytest.importorskip("zmq.asyncio")


@pytest.mark.parametrize("size", [engine.COPIED // 2, 2 * engine.COPIED])
async def test_small_pictures_are_copied_and_large_ones_are_not(size: int) -> None:
    context = zmq_asyncio.Context()
    with context.socket(zmq.PUSH) as sender, context.socket(zmq.PULL) as receiver:
        engine._copy_small_pictures(sender)
        receiver.bind("inproc://pictures")
        sender.connect("inproc://pictures")
        picture = bytearray(size)
        await sender.send_multipart([b"", memoryview(picture)], copy=False)
        picture[0] = 1  # a copy has what was there before
        frames = await receiver.recv_multipart()
        assert frames[1][0] == (0 if size < engine.COPIED else 1)
    context.term()
