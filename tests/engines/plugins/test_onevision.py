"""The plugin for films of different lengths, on features of our own making. That it serves is test_parity.py's."""

import importlib.metadata

import pytest

from serve.engines.vllm.torchvision import repair

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


def shapes(stock: bool, *lengths: int) -> list[tuple[int, ...]]:
    """Return the shapes of videos of these lengths in frames, at 4 tokens of 8 numbers a frame and a newline a
    video."""
    repair()
    import torch
    from vllm.model_executor.models.llava_onevision import LlavaOnevisionForConditionalGeneration

    from serve.engines.plugins.onevision_vllm import LlavaOnevision

    class Blind(LlavaOnevisionForConditionalGeneration if stock else LlavaOnevision):
        vision_tower = None

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.image_newline = torch.zeros(8)

        def _video_pixels_to_features(self, tower: None, frames: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(frames), 4, 8)

    films = [torch.zeros(frames, 3, 5, 5) for frames in lengths]
    pixels = torch.stack(films) if len(set(lengths)) == 1 else films
    return [tuple(film.shape) for film in Blind()._process_video_pixels({"pixel_values_videos": pixels})]


def test_videos_become_rows_of_tokens() -> None:
    assert shapes(False, 2, 3) == [(9, 8), (13, 8)]
    assert shapes(False, 2, 2) == [(9, 8), (9, 8)]


def test_vllm_still_needs_the_plugin() -> None:
    assert shapes(True, 2, 3) == [(1, 9, 8), (1, 13, 8)]


def test_vllm_finds_the_plugin() -> None:
    (entry_point,) = importlib.metadata.entry_points(group="vllm.general_plugins", name="diptych_onevision")
    repair()
    entry_point.load()()
    from vllm import ModelRegistry

    model = ModelRegistry.models["LlavaOnevisionForConditionalGeneration"]
    assert (model.module_name, model.class_name) == ("serve.engines.plugins.onevision_vllm", "LlavaOnevision")
