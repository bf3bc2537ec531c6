"""Reads lines of text by RapidOCR, which is not installed with everything else: `pip install 'diptych[ocr]'`.

An image is read in steps of bounded cost, so that a reply can be streamed, and stopped between two of them.
"""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve.engines.ocr.lines import Quad, TextLine, Unit
from serve.media.image import Pixels

PACKAGES = ("rapidocr", "onnxruntime")
MAX_SIDE = 1600
"""Larger images are scaled down: at 1,600 pixels a page of A4 has letters of 20."""
MAX_RATIO = 4
"""Longer or thinner images are padded: the detector scales the shorter side up to 736 pixels, whatever the other is."""
MAX_LINES = 500
"""The most lines that are read in an image."""
MAX_LENGTH = 128
"""The longest line, in heights of its own; letters of a longer one are too small to be read."""
BATCH = 6
"""Lines that are read in one step."""
LEAST_SCORE = 0.5
"""Lines whose probability is less are no text."""


@dataclass(frozen=True)
class FoundLine:
    """A line whose place is known, and whose text is not read yet. crop: it alone, upright."""

    quad: Quad
    crop: Pixels


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in PACKAGES)


class TextReader:
    """RapidOCR with the models in its package, on `threads` threads. Its methods block, for one thread at a time."""

    def __init__(self, threads: int) -> None:
        """Load the models."""
        import cv2
        from rapidocr import RapidOCR

        cv2.setNumThreads(threads)
        threads = min(threads, os.cpu_count() or 1)  # of more it takes all there are
        runtime = "EngineConfig.onnxruntime."
        self._ocr: Any = RapidOCR(
            params={
                "Global.log_level": "critical",
                "Global.return_word_box": True,
                f"{runtime}intra_op_num_threads": threads,
                f"{runtime}inter_op_num_threads": 1,
            }
        )

    def weights_bytes(self) -> int:
        import rapidocr

        return sum(file.stat().st_size for file in Path(rapidocr.__file__).parent.glob("models/*.onnx"))

    def find(self, fitted: Pixels) -> list[FoundLine]:
        """Return the lines of an image from `fit_image`, MAX_LINES at most."""
        from rapidocr.main import RapidOCRError

        try:
            crops, detected = self._ocr.detect_and_crop(fitted, {})
        except RapidOCRError:  # there is no text
            return []
        lines = [
            FoundLine(_quad(box), crop)
            for box, crop in zip(detected.boxes, crops, strict=True)
            if crop.size and crop.shape[1] <= MAX_LENGTH * crop.shape[0]
        ]
        return lines[:MAX_LINES]

    def read(self, lines: Sequence[FoundLine]) -> list[TextLine | None]:
        """Return the lines with their text; None for one that is no text."""
        upright, turned = self._ocr.cls_and_rotate([line.crop for line in lines])
        reading = self._ocr.recognize_txt(upright)
        results: list[TextLine | None] = []
        for index, (line, text, score) in enumerate(zip(lines, reading.txts, reading.scores, strict=True)):
            if not text.strip() or score < LEAST_SCORE:
                results.append(None)
                continue
            upside_down = "180" in turned.cls_res[index][0] and turned.cls_res[index][1] > self._ocr.text_cls.cls_thresh
            units = () if upside_down else self._units(line, text, score, reading.word_results[index])
            results.append(TextLine(text.strip(), float(score), line.quad, units))
        return results

    def _units(self, line: FoundLine, text: str, score: float, words: Any) -> list[Unit]:
        from rapidocr.ch_ppocr_rec import TextRecOutput

        reading = TextRecOutput(txts=(text,), scores=[score], word_results=(words,))
        box = np.array(line.quad, np.float32)
        (units,) = self._ocr.cal_rec_boxes([line.crop], box[None], reading).word_results
        return [Unit(word, float(probability), _quad(quad)) for word, probability, quad in units if quad is not None]


def fit_image(pixels: Pixels) -> tuple[Pixels, float]:
    """Return a copy of an image, BGR, of a size that costs a bounded time, and the factor that it was scaled by."""
    import cv2

    factor = min(1.0, MAX_SIDE / max(pixels.shape))
    if factor < 1:
        height, width = (max(1, round(factor * side)) for side in pixels.shape[:2])
        pixels = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    height, width = pixels.shape[:2]
    shortest = -(-max(height, width, 32) // MAX_RATIO)
    fitted = np.empty((max(height, shortest), max(width, shortest), 3), np.uint8)
    fitted[:] = np.median(pixels[:: max(1, height // 64), :: max(1, width // 64)], axis=(0, 1))
    fitted[:height, :width] = pixels
    return np.ascontiguousarray(fitted[:, :, ::-1]), factor


def _quad(corners: Any) -> Quad:
    a, b, c, d = ((float(x), float(y)) for x, y in corners)
    return a, b, c, d
