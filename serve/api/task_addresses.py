"""Tasks by the names that people know them by, in addresses of comparisons: /object-detection/A-vs-B."""

from collections.abc import Mapping

from serve.tasks import TASKS

_KNOWN_AS = {
    "visual-question-answering": "vqa",
    "image-captioning": "caption",
    "object-detection": "detect",
    "segmentation": "segment",
    "image-segmentation": "segment",
    "multimodal-chat": "chat",
    "pointing": "point",
    "object-counting": "count",
    "image-classification": "classify",
    "data-extraction": "extract",
}
ADDRESSES: Mapping[str, str] = {
    **{name: name for name in TASKS},
    **{name: task for name, task in _KNOWN_AS.items() if task in TASKS},
}
"""First part of an address -> task; a task's own name will do, too."""
