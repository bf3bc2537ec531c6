import numpy as np
import pytest

from serve.errors import BadRequest
from serve.media.image import Image
from serve.media.video import Video
from serve.models import MODELS
from serve.models.base import Model, Turn
from serve.tasks.caption import CaptionRequest
from serve.tasks.chat import ChatRequest
from serve.tasks.detect import DetectRequest
from serve.tasks.vqa import VqaRequest

WIDE = Image(np.zeros((50, 100, 3), np.uint8))
FILM = Video(np.zeros((40, 20, 30, 3), np.uint8), tuple(float(second) for second in range(40)), 40.0)
SMALL, VIDEO = MODELS["llava-onevision-qwen2-0.5b-ov"], MODELS["llava-next-video-7b"]


def test_turns_are_those_of_the_chat_template() -> None:
    talk = [
        Turn("system", "Be brief."),
        Turn("user", "What is it?", pictured=True),
        Turn("assistant", "A cat."),
        Turn("user", "Sure?"),
    ]
    assert SMALL.converse(talk) == (
        "<|im_start|>system \nBe brief.<|im_end|><|im_start|>user <image>\nWhat is it?<|im_end|>"
        "<|im_start|>assistant \nA cat.<|im_end|><|im_start|>user \nSure?<|im_end|><|im_start|>assistant\n"
    )


def test_a_picture_and_a_film_are_asked_about_in_the_same_words() -> None:
    (still,) = SMALL.skills["caption"].ask(CaptionRequest(image=WIDE))
    (film,) = SMALL.skills["caption"].ask(CaptionRequest(video=FILM))
    words = "Provide a one-sentence caption for the provided {}.<|im_end|><|im_start|>assistant\n"
    assert still.text == "<|im_start|>user <image>\n" + words.format("image")
    assert film.text == "<|im_start|>user <video>\n" + words.format("video")
    assert still.image is WIDE and still.video is None
    assert film.image is None and film.video is not None


@pytest.mark.parametrize("model, frames, mark", [(SMALL, 32, "user <video>\nWhy?"), (VIDEO, 24, "USER: <video>\nWhy?")])
def test_a_long_film_is_thinned_out_to_what_fits(model: Model, frames: int, mark: str) -> None:
    (prompt,) = model.skills["chat"].ask(ChatRequest(video=FILM, question="Why?"))
    assert mark in prompt.text and prompt.image is None
    assert prompt.video is not None and len(prompt.video.frames) == frames
    assert prompt.video.times[0] == 0 and prompt.video.times[-1] == 39
    short = Video(FILM.frames[:3], FILM.times[:3], 3.0)
    (prompt,) = model.skills["chat"].ask(ChatRequest(video=short, question="Why?"))
    assert prompt.video is short


def test_what_fits_leaves_room_for_words() -> None:
    assert SMALL.frames * 196 < SMALL.family_args["max_model_len"] - 1024
    assert VIDEO.frames * 144 < VIDEO.family_args["max_model_len"] - 512


def test_films_are_taken_by_those_trained_on_them_only() -> None:
    assert {name for name, model in MODELS.items() if model.videos} == {
        *(f"llava-onevision-qwen2-{size}-ov" for size in ("0.5b", "7b", "72b")),
        "llava-next-video-7b",
    }
    assert not VIDEO.images and "detect" not in VIDEO.skills


def test_a_film_has_no_boxes() -> None:
    with pytest.raises(BadRequest) as refused:
        SMALL.skills["detect"].ask(DetectRequest(video=FILM, labels=["cat"]))
    assert refused.value.param == "video"


def test_only_detection_pads_and_with_siglips_grey() -> None:
    (vqa,) = SMALL.skills["vqa"].ask(VqaRequest(image=WIDE, question="What is it?"))
    (detect,) = SMALL.skills["detect"].ask(DetectRequest(image=WIDE, labels=["cat"]))
    assert vqa.image is WIDE and detect.image is not None
    assert detect.image.pixels.shape == (100, 100, 3) and tuple(detect.image.pixels[0, 0]) == (127, 127, 127)
