"""Pascal VOC: an XML file for each picture in `Annotations/`, pictures in `JPEGImages/`, a list in `ImageSets/Main/`.

Boxes are whole pixels that count from 1, the last one included. There is no place for scores or masks.
"""

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from serve.tasks.labels.picture import Answered, Json, Truth, answered, box_truths, place, writable

CORNERS = ("xmin", "ymin", "xmax", "ymax")


def write_voc(folder: Path, pictures_in: Path, pictures: Sequence[Answered]) -> None:
    """Write the annotations and link the pictures beside them. Raises OSError."""
    kept = answered(pictures)
    stems = []
    for picture in kept:
        stem = PurePosixPath(picture.file).with_suffix("")
        path = folder / "Annotations" / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        ET.ElementTree(_annotation(picture)).write(path, encoding="utf-8")
        place(pictures_in / picture.file, folder / "JPEGImages" / picture.file)
        stems.append(writable(str(stem)))
    listed = folder / "ImageSets" / "Main" / "default.txt"
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text("".join(f"{stem}\n" for stem in stems), encoding="utf-8")


def read_voc(folder: Path) -> Iterator[Truth]:
    """Yield the boxes of every XML annotation below a folder. Raises ValueError naming the file that is none."""
    for path in sorted(folder.rglob("*.xml")):
        try:
            root = parse_xml(path.read_text(encoding="utf-8-sig"))
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f"{path}: {error}") from None
        if root.tag != "annotation":
            continue
        boxes: list[Json] = []
        try:
            for thing in root.iter("object"):
                x0, y0, x1, y1 = (float(thing.findtext(f"bndbox/{corner}", "")) for corner in CORNERS)
                label = (thing.findtext("name") or "").strip()
                if not label or x1 < x0 - 1 or y1 < y0 - 1:
                    raise ValueError
                boxes.append({"label": label, "box": [x0 - 1, y0 - 1, x1, y1], "crowd": False})
        except ValueError:
            raise ValueError(f"{path}: object {len(boxes) + 1} has no name, or no bndbox of four numbers.") from None
        name = root.findtext("filename") or f"{path.stem}.jpg"
        yield from box_truths(str(path), name, boxes)


def parse_xml(text: str) -> ET.Element:
    """Parse XML without a document type, so without entities. Raises ValueError."""
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("XML with a document type is not read.")
    try:
        return ET.fromstring(text)
    except ET.ParseError as error:
        raise ValueError(f"this is not XML: {error}.") from None


def _annotation(picture: Answered) -> ET.Element:
    root = ET.Element("annotation")
    _leaf(root, "folder", "JPEGImages")
    _leaf(root, "filename", picture.file)
    size = ET.SubElement(root, "size")
    for name, value in zip(("width", "height", "depth"), (*picture.size, 3), strict=True):
        _leaf(size, name, str(value))
    _leaf(root, "segmented", "0")
    for box in picture.boxes:
        thing = ET.SubElement(root, "object")
        _leaf(thing, "name", box["label"])
        for name in ("truncated", "difficult"):
            _leaf(thing, name, "0")
        corners = ET.SubElement(thing, "bndbox")
        x0, y0, x1, y1 = (round(value) for value in box["box"])
        for name, value in zip(CORNERS, (x0 + 1, y0 + 1, max(x0 + 1, x1), max(y0 + 1, y1)), strict=True):
            _leaf(corners, name, str(value))
    return root


def _leaf(parent: ET.Element, name: str, text: str) -> None:
    ET.SubElement(parent, name).text = writable(text)
