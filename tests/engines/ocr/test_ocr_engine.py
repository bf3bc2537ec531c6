"""The engine that reads text, with a reader in RapidOCR's place, and as a column beside models that vLLM serves."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from served import LLAVA, URL, calling, message

from serve.api.app import create_app
from serve.engines.base import Piece, Prompt, Sampling
from serve.engines.fake import FakeEngine
from serve.engines.ocr import engine as ocr_engine
from serve.engines.ocr.engine import READ, OcrEngine
from serve.engines.ocr.lines import TextLine, Unit
from serve.engines.ocr.reader import MAX_SIDE, FoundLine, fit_image
from serve.errors import BadRequest, ModelError
from serve.media.image import Image, Pixels
from serve.models import MODELS
from serve.router import Router
from serve.worker import Worker

IMAGE = Image(np.full((48, 64, 3), 255, np.uint8))


class Reader:
    """A reader of given lines, whose steps wait for `gate`."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.read_lines = texts, 0
        self.gate = threading.Event()
        self.gate.set()

    def weights_bytes(self) -> int:
        return 1

    def find(self, fitted: Pixels) -> list[FoundLine]:
        self.gate.wait(5)
        crop = np.zeros((8, 50, 3), np.uint8)
        tops = [10.0 * at for at in range(len(self.texts))]
        return [FoundLine(((0, top), (50, top), (50, top + 8), (0, top + 8)), crop) for top in tops]

    def read(self, lines: Sequence[FoundLine]) -> list[TextLine | None]:
        self.gate.wait(5)
        results: list[TextLine | None] = []
        for line in lines:
            text = self.texts[round(line.quad[0][1] / 10)]
            self.read_lines += 1
            results.append(TextLine(text, 0.5, line.quad, [Unit(text, 0.5, line.quad)]) if text else None)
        return results


async def started(reader: Reader, **options: Any) -> OcrEngine:
    engine = OcrEngine(load=lambda threads: reader, **options)  # type: ignore[arg-type,return-value]
    await engine.start()
    return engine


async def pieces(engine: OcrEngine, text: str = READ, **sampling: Any) -> list[Piece]:
    return [piece async for piece in engine.generate(Prompt(text, IMAGE, Sampling(**sampling)))]


async def test_rows_are_pieces_with_their_probabilities() -> None:
    engine = await started(Reader("one", "", "two"))
    got = await pieces(engine)
    assert [piece.text for piece in got] == ["one", "\ntwo", ""]
    assert [token.text for piece in got for token in piece.tokens] == ["one", "\ntwo"]
    assert got[0].tokens[0].logprob == pytest.approx(np.log(0.5))
    assert (got[-1].finish_reason, got[-1].completion_tokens) == ("stop", 2)


@pytest.mark.parametrize(
    ("sampling", "text", "finish"),
    [
        ({"max_tokens": 1}, "one", "length"),
        ({"max_tokens": 2}, "one\ntwo", "stop"),
        ({"stop": ("wo",)}, "one\nt", "stop"),
        ({"stop": ("\n",)}, "one", "stop"),
    ],
)
async def test_reply_ends_where_the_sampling_says(sampling: dict[str, Any], text: str, finish: str) -> None:
    got = await pieces(await started(Reader("one", "two")), **sampling)
    assert "".join(piece.text for piece in got) == text and got[-1].finish_reason == finish


async def test_image_without_text_is_an_empty_reply() -> None:
    engine = await started(Reader())
    assert [piece.text for piece in await pieces(engine)] == [""]
    assert "".join(piece.text for piece in await pieces(engine, '["x"]')) == "[]"


async def test_request_that_is_closed_reads_no_further() -> None:
    reader = Reader(*["line"] * 60)
    engine = await started(reader)
    stream = engine.generate(Prompt(READ, IMAGE))
    await anext(stream)
    await stream.aclose()
    assert reader.read_lines <= 2 * ocr_engine.BATCH
    reader.gate.clear()
    task = asyncio.ensure_future(pieces(engine))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    reader.gate.set()
    assert len(await pieces(engine, max_tokens=2)) == 3  # the next request is answered


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"threads": 0}, "threads"), ({"thread": 1}, "thread is no argument"), ({"threads": True}, "threads")],
)
async def test_wrong_argument_is_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        await started(Reader(), engine_args=arguments)


async def test_missing_package_is_a_sentence_with_the_command_that_installs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ocr_engine, "is_installed", lambda: False)
    engine = OcrEngine()
    with pytest.raises(ModelError, match=r"pip install 'diptych\[ocr\]'"):
        await engine.start()
    with pytest.raises(ModelError):
        await engine.check()


async def test_prompt_without_an_image_or_with_a_schema_is_refused() -> None:
    engine = await started(Reader())
    with pytest.raises(BadRequest):
        [piece async for piece in engine.generate(Prompt(READ, None))]
    with pytest.raises(BadRequest, match="schema"):
        await pieces(engine, json_schema="{}")


@pytest.mark.parametrize(
    ("width", "height", "fitted"),
    [
        (8000, 4000, (MAX_SIDE, MAX_SIDE // 2)),
        (5000, 3, (MAX_SIDE, MAX_SIDE // 4)),
        (1, 1, (8, 8)),
        (640, 480, (640, 480)),
    ],
)
def test_fitted_image_has_a_size_of_bounded_cost(width: int, height: int, fitted: tuple[int, int]) -> None:
    pixels, factor = fit_image(np.zeros((height, width, 3), np.uint8))
    assert pixels.shape == (fitted[1], fitted[0], 3) and factor == min(1, MAX_SIDE / max(width, height))


async def app(reader: Reader, llava: FakeEngine) -> Any:
    workers = [Worker(MODELS[LLAVA], llava), Worker(MODELS["rapidocr"], await started(reader))]
    for worker in workers:
        worker.mark("ready", "ready")
    return create_app(Router(workers))


async def test_text_is_merged_with_the_other_models() -> None:
    async with calling(await app(Reader("EXIT", "12"), FakeEngine("EXIT\n12"))) as client:
        answer = (await client.post("/v1/tasks/ocr", json={"image": URL})).json()
    assert [reply["status"] for reply in answer["replies"]] == ["ok", "ok"]
    assert answer["replies"][1]["result"] == {"text": "EXIT\n12"}
    assert answer["merged"]["models"] == [LLAVA, "rapidocr"] and answer["merged"]["agreement"] == 1


async def test_request_for_boxes_gets_lines_with_their_places_from_the_reader_alone() -> None:
    async with calling(await app(Reader("EXIT", "12"), FakeEngine("EXIT\n12"))) as client:
        answer = (await client.post("/v1/tasks/ocr", json={"image": URL, "boxes": True})).json()
    (reply,) = answer["replies"]
    assert (reply["model"], reply["result"]["text"]) == ("rapidocr", "EXIT\n12")
    assert [line["label"] for line in reply["result"]["boxes"]] == ["EXIT", "12"]
    assert answer["merged"]["result"] == reply["result"]


async def test_quoted_phrase_has_boxes_and_objects_are_left_to_others() -> None:
    async with calling(await app(Reader("EXIT", "12"), FakeEngine("[0.1, 0.1, 0.5, 0.5]"))) as client:
        quoted = (await client.post("/v1/tasks/detect", json={"image": URL, "labels": ['"exit"']})).json()
        objects = (await client.post("/v1/tasks/detect", json={"image": URL, "labels": ["red circle"]})).json()
        named = {"image": URL, "labels": ["exit", "entry"], "models": ["rapidocr"]}
        by_name = (await client.post("/v1/tasks/detect", json=named)).json()
        chat = {"model": "detect:*", "messages": [message("red circle")]}
        chosen = (await client.post("/v1/chat/completions", json=chat)).json()
    assert [reply["model"] for reply in quoted["replies"]] == [LLAVA, "rapidocr"]
    assert quoted["replies"][1]["result"]["boxes"] == [{"label": '"exit"', "box": [0, 0, 50, 8], "score": 0.5}]
    assert [reply["model"] for reply in objects["replies"]] == [LLAVA]
    assert [box["label"] for box in by_name["merged"]["result"]["boxes"]] == ["exit"]
    assert [choice["diptych"]["model"] for choice in chosen["choices"]] == [None, LLAVA]


async def test_chat_with_the_reader_alone_gives_the_text() -> None:
    async with calling(await app(Reader("EXIT"), FakeEngine())) as client:
        body = {"model": "rapidocr", "messages": [message("what is written here?")]}
        reply = (await client.post("/v1/chat/completions", json=body)).json()
        blind = await client.post("/v1/chat/completions", json=body | {"messages": [message("hi", image=None)]})
    assert reply["choices"][0]["message"]["content"] == "EXIT"
    assert (blind.status_code, blind.json()["error"]["param"]) == (400, "messages")


async def test_late_reader_costs_its_column() -> None:
    reader = Reader("EXIT")
    served_app = await app(reader, FakeEngine("EXIT"))
    reader.gate.clear()
    async with calling(served_app) as client:
        answer = (await client.post("/v1/tasks/ocr", json={"image": URL, "deadline_s": 0.1})).json()
    reader.gate.set()
    assert [reply["status"] for reply in answer["replies"]] == ["ok", "timeout"]
    assert answer["merged"]["result"] == {"text": "EXIT"}


async def test_reader_that_was_stopped_can_be_started_again() -> None:
    engine = await started(Reader())
    await engine.stop()
    await engine.start()
    await engine.check()
    await engine.stop()
