"""COCO: `annotations/instances.json` with boxes and masks, or `annotations/captions.json`.

An annotation has a `score` beside COCO's own fields, an image its `agreement`.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from serve.media.masks import Rle, area
from serve.tasks.labels.picture import Answered, Json, answered, names


def write_coco(folder: Path, pictures_in: Path, pictures: Sequence[Answered]) -> None:
    """Write the annotations. Pictures stay where they are. Raises OSError."""
    kept = answered(pictures)
    images = [
        {"id": at, "file_name": picture.file, "agreement": picture.agreement}
        | dict(zip(("width", "height"), picture.size, strict=True))
        for at, picture in enumerate(kept, 1)
    ]
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    if any(picture.task == "caption" for picture in pictures):
        captions = [
            {"id": at, "image_id": at, "caption": picture.text, "score": picture.agreement}
            for at, picture in enumerate(kept, 1)
        ]
        body: Json = {"info": _info(kept), "images": images, "annotations": captions}
        (folder / "annotations" / "captions.json").write_text(json.dumps(body), encoding="ascii")
        return
    categories = {name: number for number, name in enumerate(names(kept), 1)}
    annotations: list[Json] = []
    for at, picture in enumerate(kept, 1):
        for box in picture.boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": at} | _instance(box, categories))
    body = {
        "info": _info(kept),
        "images": images,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
        "annotations": annotations,
    }
    (folder / "annotations" / "instances.json").write_text(json.dumps(body), encoding="ascii")


def _info(pictures: Sequence[Answered]) -> Json:
    models = list(dict.fromkeys(name for picture in pictures for name in picture.answers))
    return {"description": f"Merged answers of {', '.join(models)}"}


def _instance(box: Json, categories: dict[str, int]) -> Json:
    x0, y0, x1, y1 = box["box"]
    fields: Json = {
        "category_id": categories[box["label"]],
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": (x1 - x0) * (y1 - y0),
        "iscrowd": 0,
        "score": box.get("score", 1.0),
    }
    if "mask" in box:
        fields |= {"segmentation": box["mask"], "area": area(Rle.model_validate(box["mask"]))}
    return fields
