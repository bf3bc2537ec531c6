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
CLIP = Video(np.zeros((40, 20, 30, 3), np.uint8), tuple(float(second) for second in range(40)), 40.0)
SMALL, VIDEO = MODELS["llava-onevision-qwen2-0.5b-ov"], MODELS["llava-next-video-7b"]


def test_conversation_prompt_follows_the_chat_template() -> None:
    turns = [
        Turn("system", "Be brief."),
        Turn("user", "What is it?", has_image=True),
        Turn("assistant", "A cat."),
        Turn("user", "Sure?"),
    ]
    assert SMALL.converse(turns) == (
        "<|im_start|>system \nBe brief.<|im_end|><|im_start|>user <image>\nWhat is it?<|im_end|>"
        "<|im_start|>assistant \nA cat.<|im_end|><|im_start|>user \nSure?<|im_end|><|im_start|>assistant\n"
    )


def test_image_and_video_have_the_same_caption_prompt() -> None:
    (image_prompt,) = SMALL.skills["caption"].ask(CaptionRequest(image=WIDE))
    (video_prompt,) = SMALL.skills["caption"].ask(CaptionRequest(video=CLIP))
    end = "Provide a one-sentence caption for the provided {}.<|im_end|><|im_start|>assistant\n"
    assert image_prompt.text == "<|im_start|>user <image>\n" + end.format("image")
    assert video_prompt.text == "<|im_start|>user <video>\n" + end.format("video")
    assert image_prompt.image is WIDE and image_prompt.video is None
    assert video_prompt.image is None and video_prompt.video is not None


@pytest.mark.parametrize("model, frames, mark", [(SMALL, 32, "user <video>\nWhy?"), (VIDEO, 24, "USER: <video>\nWhy?")])
def test_long_video_is_sampled_to_the_familys_frame_count(model: Model, frames: int, mark: str) -> None:
    (prompt,) = model.skills["chat"].ask(ChatRequest(video=CLIP, question="Why?"))
    assert mark in prompt.text and prompt.image is None
    assert prompt.video is not None and len(prompt.video.frames) == frames
    assert prompt.video.times[0] == 0 and prompt.video.times[-1] == 39
    short = Video(CLIP.frames[:3], CLIP.times[:3], 3.0)
    (prompt,) = model.skills["chat"].ask(ChatRequest(video=short, question="Why?"))
    assert prompt.video is short


def test_sampled_frames_leave_context_for_text() -> None:
    assert SMALL.frames * 196 < SMALL.family_args["max_model_len"] - 1024
    assert VIDEO.frames * 144 < VIDEO.family_args["max_model_len"] - 512


def test_only_families_trained_on_videos_take_videos() -> None:
    assert {name for name, model in MODELS.items() if model.videos} == {
        *(f"llava-onevision-qwen2-{size}-ov" for size in ("0.5b", "7b", "72b")),
        "llava-next-video-7b",
    }
    assert not VIDEO.images and "detect" not in VIDEO.skills


def test_detection_refuses_a_video() -> None:
    with pytest.raises(BadRequest) as error:
        SMALL.skills["detect"].ask(DetectRequest(video=CLIP, labels=["cat"]))
    assert error.value.param == "video"


def test_only_detection_pads_with_the_siglip_mean() -> None:
    (vqa,) = SMALL.skills["vqa"].ask(VqaRequest(image=WIDE, question="What is it?"))
    (detect,) = SMALL.skills["detect"].ask(DetectRequest(image=WIDE, labels=["cat"]))
    assert vqa.image is WIDE and detect.image is not None
    assert detect.image.pixels.shape == (100, 100, 3) and tuple(detect.image.pixels[0, 0]) == (127, 127, 127)
