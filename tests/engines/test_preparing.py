"""An image is decoded, prepared and processed once for concurrent prompts. No vLLM is started."""

import asyncio
import contextlib
import functools
import io
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import PIL.Image
import pytest

from serve.engines.base import Prompt
from serve.engines.vllm.engine import VllmEngine
from serve.errors import BadRequest
from serve.media.decoding import MediaDecoder
from serve.media.geometry import pad_to_square
from serve.media.image import Image, undecoded_image

pytestmark = pytest.mark.slow  # torch takes seconds to import, in each worker


class Counting(MediaDecoder):
    """A decoder that counts decoded files and images in use."""

    def __init__(self) -> None:
        super().__init__()
        self.decoded = self.looking = 0

    @contextlib.asynccontextmanager
    async def decode_image(self, image: Image, within_s: float | None = None) -> AsyncIterator[None]:
        self.decoded += image.undecoded_pixels > 0
        async with super().decode_image(image, within_s):
            self.looking += 1
            try:
                yield
            finally:
                self.looking -= 1


class Renderer:
    """A stand-in for vLLM's renderer. keeps: the images that its cache holds; None is no cache."""

    def __init__(self, keeps: int | None) -> None:
        self.keeps = keeps
        self.kept: list[str] = []
        self.processed: list[Any] = []
        self.texts: list[str] = []
        self.mm_processor_cache = None if keeps is None else self

    def is_cached_item(self, digest: str) -> bool:
        return digest in self.kept

    async def render_cmpl_async(self, prompts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (prompt,) = prompts
        await asyncio.sleep(0.001)
        (picture,) = prompt["multi_modal_data"]["image"]
        (digest,) = prompt.get("multi_modal_uuids", {"image": [None]})["image"]
        if picture is not None:
            self.processed.append(picture)
            if self.keeps and digest is not None:
                self.kept = [*self.kept, digest][-self.keeps :]
        elif digest not in self.kept:
            raise ValueError("put out of the cache")
        self.texts.append(prompt["prompt"])
        return [{"prompt_token_ids": [1]}]


class Engine(VllmEngine):
    """An engine whose vLLM is the renderer alone."""

    def __init__(self, keeps: int | None = 8) -> None:
        self.prepared = 0
        self.counting = Counting()
        super().__init__("none", prepare=self._prepare, decoder=self.counting)
        self.renderer = Renderer(keeps)
        self._llm = SimpleNamespace(renderer=self.renderer)

    def _prepare(self, image: Image) -> Image:
        self.prepared += 1
        return pad_to_square(image, (122, 116, 104))

    async def ask(self, image: Image, text: str = "a") -> Any:
        return await self._inputs(Prompt(text, image))

    async def idle(self) -> None:
        """Wait until nothing is in use. Raises AssertionError where something stays."""
        for _ in range(200):
            if not self._images and not self.counting.looking and len(asyncio.all_tasks()) == 1:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("something was left behind")


def picture(width: int = 90, height: int = 60, digest: str | None = "d" * 40) -> Image:
    return Image(np.full((height, width, 3), 50, np.uint8), digest)


@functools.cache
def file(width: int = 900, height: int = 700) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(
        stream, "PNG"
    )
    return stream.getvalue()


@pytest.mark.parametrize("keeps", [8, 0, None], ids=["cached", "too large for the cache", "no cache"])
@pytest.mark.parametrize("image", [picture(), picture(1200, 900), picture(3000, 2)], ids=["small", "large", "thin"])
async def test_image_of_concurrent_prompts_is_prepared_once(keeps: int | None, image: Image) -> None:
    engine = Engine(keeps)
    await asyncio.gather(*(engine.ask(image, f"phrase {at}") for at in range(32)))
    assert engine.prepared == 1 and sorted(engine.renderer.texts) == sorted(f"phrase {at}" for at in range(32))
    assert len(engine.renderer.processed) == (1 if keeps else 32)
    assert len({id(seen) for seen in engine.renderer.processed}) == 1  # no copies
    await engine.idle()


@pytest.mark.parametrize("keeps", [8, None], ids=["cached", "no cache"])
async def test_file_of_concurrent_replies_is_decoded_once(keeps: int | None) -> None:
    """A chat's `n` replies are prompts with an image object each."""
    engine, data = Engine(keeps), file()
    await asyncio.gather(*(engine.ask(undecoded_image(data)) for _ in range(8)))
    assert (engine.counting.decoded, engine.prepared) == (1, 1)
    await engine.idle()
    await engine.ask(undecoded_image(data))
    assert engine.counting.decoded == (1 if keeps else 2)
    await engine.idle()


async def test_image_without_a_digest_is_shared_by_prompts_with_the_same_object() -> None:
    engine, first, other = Engine(), picture(digest=None), picture(digest=None)
    await asyncio.gather(*(engine.ask(image) for image in [first, other] * 4))
    assert engine.prepared == 2
    await engine.idle()


async def test_different_images_are_prepared_independently() -> None:
    engine = Engine()
    shapes = {f"{at}": (60 + at, 40) for at in range(6)}
    await asyncio.gather(*(engine.ask(picture(*shape, digest)) for digest, shape in shapes.items() for _ in range(3)))
    assert sorted(seen.shape[-1] for seen in engine.renderer.processed) == [60, 61, 62, 63, 64, 65]
    assert engine.prepared == 6
    await engine.idle()


@pytest.mark.parametrize("leavers", [[0], [0, 1, 2], [3], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("after", [0, 3, 8])
async def test_cancelled_prompts_do_not_affect_the_others(leavers: list[int], after: int) -> None:
    engine, data = Engine(None), file()
    images = [undecoded_image(data) for _ in range(6)]
    for image in images:
        image.compute_digest()  # or prompts would arrive one by one, from the thread that does it
    tasks = [asyncio.create_task(engine.ask(image, str(at))) for at, image in enumerate(images)]
    for _ in range(after):
        await asyncio.sleep(0)
    for leaver in leavers:
        tasks[leaver].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, dict) for result in results] == [at not in leavers for at in range(6)]
    assert engine.counting.decoded <= 1 and engine.prepared <= 1
    await engine.idle()


@pytest.mark.parametrize("cut", [200, 3000, 10_000])
async def test_a_damaged_file_is_refused_to_all_and_leaves_nothing(cut: int) -> None:
    engine, data = Engine(), file()[:-cut]
    results = await asyncio.gather(*(engine.ask(undecoded_image(data)) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, BadRequest) for result in results) and engine.prepared == 0
    await engine.idle()


async def test_image_evicted_from_the_cache_is_prepared_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Engine()
    monkeypatch.setattr(engine, "has_cached", lambda image: True)
    await asyncio.gather(*(engine.ask(picture()) for _ in range(4)))
    assert engine.prepared == 1 and len(engine.renderer.texts) == 4
    await engine.idle()
