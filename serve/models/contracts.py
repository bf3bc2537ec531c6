"""Coordinate contracts: how a family writes boxes, points and polygons, declared once, to be written and read.

    QWEN3_VL.parse('[{"bbox_2d": [100, 200, 300, 400], "label": "cat"}]', (640, 480), ["cat"]).boxes

A contract says what the numbers mean; it is never guessed from them. One decoder reads every contract's text. It takes
what models really write (reasoning, fences, prose, single quotes, loops, cut replies), in one pass over the text.
"""

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pydantic_core import from_json

from serve.engines.base import Generation
from serve.errors import ParseError
from serve.media.geometry import clip
from serve.models.reasoning import answer_start
from serve.tasks.boxes import AskedLabels, DetectResult, LabelledBox, label_key
from serve.tasks.plurals import plural_phrase, singular_phrase
from serve.tasks.points import LabelledPoint

SLACK = 0.01
"""The slack of most contracts: Qwen's own pages disagree on 0-999 or 0-1000 (QwenLM/Qwen3-VL 1741). An engine's
fault is far beyond it (a mean y of 1074, vllm 36117)."""
MOST_OBLONG = 200
"""The most that Qwen's processors take of a picture's longer side over its shorter one."""
MAX_SHAPES = 1000
"""The most shapes that are read in one reply."""
MAX_TEXT = 2**17
"""The most characters of an answer that are read; the rest counts as cut off."""
MAX_DEPTH = 16
"""The most lists and objects inside each other; of deeper ones the outermost are forgotten."""
MAX_NUMBER = 32
"""The most characters of a number; a longer one lies outside every contract."""

Size = tuple[int, int]
Span = tuple[int, int]


class Fault(StrEnum):
    """A reason why a reply, or one of its shapes, cannot be read as it is written."""

    EMPTY_REPLY = "empty_reply"
    NO_SHAPE = "no_shape"
    UNFINISHED_REASONING = "unfinished_reasoning"
    TRUNCATED = "truncated"
    OUTSIDE_CONTRACT = "outside_contract"
    WRONG_LENGTH = "wrong_length"
    NOT_A_NUMBER = "not_a_number"
    EMPTY_AREA = "empty_area"
    SWAPPED_CORNERS = "swapped_corners"
    UNKNOWN_LABEL = "unknown_label"
    MISSING_LABEL = "missing_label"
    REPEATED = "repeated"
    TOO_MANY = "too_many"


MESSAGES = {
    Fault.EMPTY_REPLY: "The reply is empty.",
    Fault.NO_SHAPE: "The reply holds no coordinates of the form {form}.",
    Fault.UNFINISHED_REASONING: "The reply ended within its reasoning, before an answer.",
    Fault.TRUNCATED: "The reply was cut before its first whole object of the form {form}.",
    Fault.OUTSIDE_CONTRACT: "The reply's numbers are not those of the model's coordinate contract ({form}).",
    Fault.WRONG_LENGTH: "The reply's coordinates have a wrong length; the form is {form}.",
    Fault.NOT_A_NUMBER: "The reply has something other than finite numbers for coordinates; the form is {form}.",
    Fault.EMPTY_AREA: "The reply's boxes have no area inside the image.",
    Fault.SWAPPED_CORNERS: "The reply's boxes end before they begin.",
    Fault.UNKNOWN_LABEL: "The reply holds no object that was asked for.",
    Fault.MISSING_LABEL: "The reply does not say which of the labels its coordinates are of.",
}
_MENDED = {Fault.SWAPPED_CORNERS, Fault.REPEATED, Fault.TOO_MANY}


@dataclass(frozen=True)
class Frame:
    """The area that a contract's numbers count across. left, top, width, height: in pixels of the image. across, down:
    the numbers of its right and lower edge."""

    left: float
    top: float
    width: float
    height: float
    across: float
    down: float


@dataclass(frozen=True)
class Tags:
    """Texts around a shape's label and around its numbers. Without `label` the shape has no label of its own."""

    label: tuple[str, str] | None
    numbers: tuple[str, str]


@dataclass(frozen=True)
class PlacedShape:
    """A shape in pixels of the image. numbers: x0, y0, x1, y1 of a box; x, y of a point; x, y by turns of a polygon."""

    label: str
    numbers: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class Decoded:
    """A reply that was read. Nothing was there to be found if `shapes` is empty and `fault` is None.

    fault: why the reply cannot be read; then it has no shapes. counts: what was left out or mended, by fault.
    """

    contract: "Contract"
    shapes: tuple[PlacedShape, ...] = ()
    fault: Fault | None = None
    counts: Mapping[Fault, int] = field(default_factory=dict)

    @property
    def truncated(self) -> bool:
        return Fault.TRUNCATED in self.counts

    @property
    def boxes(self) -> list[LabelledBox]:
        """Return the shapes of a contract for boxes."""
        return [
            LabelledBox(label=shape.label, box=(x0, y0, x1, y1), score=shape.score)
            for shape in self.shapes
            for x0, y0, x1, y1 in [shape.numbers]
        ]

    @property
    def points(self) -> list[LabelledPoint]:
        """Return the shapes of a contract for points."""
        return [
            LabelledPoint(label=shape.label, point=(x, y), score=shape.score)
            for shape in self.shapes
            for x, y in [shape.numbers]
        ]

    def require(self) -> None:
        """Raise ParseError for a reply that cannot be read."""
        if self.fault is not None:
            raise ParseError(MESSAGES[self.fault].format(form=self.contract.form))

    def result(self) -> DetectResult:
        """Return the boxes. Raises as `require`."""
        self.require()
        return DetectResult(boxes=self.boxes)


@dataclass(frozen=True)
class Multiples:
    """The resizing of Qwen's processors: sides are multiples of `factor`, the area is least to most pixels.

    As `smart_resize` of transformers' `qwen2_vl/image_processing_qwen2_vl.py`; both limits stand in the checkpoint's
    preprocessor_config.json. A picture that is more than MOST_OBLONG times as long as it is wide is refused there.
    """

    factor: int
    least: int
    most: int

    def __call__(self, width: int, height: int) -> Size:
        factor = self.factor
        sides = round(width / factor) * factor, round(height / factor) * factor
        if sides[0] * sides[1] > self.most:
            ratio = math.sqrt(width * height / self.most)
            sides = (
                max(factor, math.floor(width / ratio / factor) * factor),
                max(factor, math.floor(height / ratio / factor) * factor),
            )
        elif sides[0] * sides[1] < self.least:
            ratio = math.sqrt(self.least / (width * height))
            sides = math.ceil(width * ratio / factor) * factor, math.ceil(height * ratio / factor) * factor
        return sides


@dataclass(frozen=True)
class Contract:
    """A family's way of writing coordinates.

    scale: the number of the image's far edge; None for pixels of the picture after `resized`. order: of each pair.
    style: JSON objects; numbers between tags; bare numbers in brackets; location tokens after or before their label;
    Molmo's points. key: in JSON, the coordinates'; "" for x_min and so on. decimals: as the family writes numbers.
    resized: width and height -> those of the picture that the model gets. padded: numbers count across the image
    padded to a square. tags: in any style, as models fall back on them. empty: an empty reply says that nothing was
    found. label: in JSON, the labels' key where it is none of the usual ones. slack: the part of the scale by which a
    number may lie outside and is moved to the edge.
    """

    name: str
    scale: float | None = 1000
    order: Literal["xy", "yx"] = "xy"
    style: Literal["json", "tags", "brackets", "label_locations", "locations_label", "points"] = "json"
    shape: Literal["box", "point", "polygon"] = "box"
    key: str = "bbox_2d"
    nested: bool = False
    decimals: int = 0
    resized: Multiples | None = None
    padded: bool = False
    tags: Tags | None = None
    location: str = "<loc_{}>"
    empty: bool = False
    label: str = ""
    slack: float = SLACK

    @property
    def form(self) -> str:
        """Return an example of the text, for messages."""
        names = {"box": "x0, y0, x1, y1", "point": "x, y", "polygon": "x, y, ..."}[self.shape]
        names = re.sub(r"x(\d?), y(\d?)", r"y\1, x\2", names) if self.order == "yx" else names
        return f"[{names}], {self.unit}"

    @property
    def label_keys(self) -> Sequence[str]:
        """Return the keys of labels in JSON, its own first."""
        return [self.label, *_LABELS] if self.label else _LABELS

    @property
    def unit(self) -> str:
        """Return what the numbers count."""
        return "pixels" if self.scale is None else f"0 to {self.scale:g}"

    def frame(self, size: Size) -> Frame:
        width, height = size
        if self.padded:
            side = max(size)
            edge = self.scale or side
            return Frame(-((side - width) // 2), -((side - height) // 2), side, side, edge, edge)
        if self.scale is None:
            across, down = self.resized(width, height) if self.resized else size
            return Frame(0, 0, width, height, across, down)
        return Frame(0, 0, width, height, self.scale, self.scale)

    def place(self, numbers: Sequence[float], size: Size) -> tuple[float, ...] | Fault:
        """Convert numbers in the contract's order to x, y by turns in pixels of the image, clipped to it."""
        placed = self.locate(numbers, size)
        if isinstance(placed, Fault):
            return placed
        clipped: list[float] = []
        for x, y in zip(placed[::2], placed[1::2], strict=True):
            clipped += clip((x, y, x, y), *size)[:2]
        return tuple(clipped)

    def locate(self, numbers: Sequence[float], size: Size) -> tuple[float, ...] | Fault:
        """Convert as `place`, neither clipped nor rounded: to fractions of the image for a size of 1, 1."""
        length = {"box": 4, "point": 2}.get(self.shape, max(6, len(numbers)))
        if len(numbers) != length or len(numbers) % 2:
            return Fault.WRONG_LENGTH
        if not all(map(math.isfinite, numbers)):
            return Fault.NOT_A_NUMBER
        frame = self.frame(size)
        edges = (frame.across, frame.down) if self.order == "xy" else (frame.down, frame.across)
        for at, value in enumerate(numbers):
            if not -self.slack * edges[at % 2] <= value <= (1 + self.slack) * edges[at % 2]:
                return Fault.OUTSIDE_CONTRACT
        if frame.across > 1 and not self.decimals and max(numbers) <= 1 and any(value % 1 for value in numbers):
            return Fault.OUTSIDE_CONTRACT  # fractions, where whole numbers are declared
        placed: list[float] = []
        for at in range(0, len(numbers), 2):
            x, y = numbers[at : at + 2] if self.order == "xy" else (numbers[at + 1], numbers[at])
            placed.append(frame.left + x / frame.across * frame.width)
            placed.append(frame.top + y / frame.down * frame.height)
        return tuple(placed)

    def unplace(self, numbers: Sequence[float], size: Size) -> list[float]:
        """Convert x, y by turns in pixels of the image to numbers in the contract's order, with its decimals."""
        frame = self.frame(size)
        units: list[float] = []
        for at in range(0, len(numbers), 2):
            x = round((numbers[at] - frame.left) / frame.width * frame.across, self.decimals)
            y = round((numbers[at + 1] - frame.top) / frame.height * frame.down, self.decimals)
            units += [x, y] if self.order == "xy" else [y, x]
        return units

    def format(self, shapes: Sequence[tuple[str, Sequence[float]]], size: Size) -> str:
        """Write shapes (label, x and y by turns in pixels) as the family does."""
        return _WRITERS[self.style](self, [(label, self._texts(numbers, size)) for label, numbers in shapes])

    def _texts(self, numbers: Sequence[float], size: Size) -> list[str]:
        return [f"{value:.{self.decimals}f}" for value in self.unplace(numbers, size)]

    def written(self, text: str) -> list[tuple[str | None, tuple[float, ...]]]:
        """Return the label and the numbers of each shape in a reply as they stand there, whatever the numbers mean."""
        start = answer_start(text)
        if start is None:
            return []
        items = _read(self, text[: start + MAX_TEXT], start).items
        return [(item.label, item.numbers) for item in items if item.fault is None]

    def parse(self, text: str, size: Size, labels: Sequence[str] | None = None) -> Decoded:
        return self.decode(Generation(text), size, labels)

    def decode(self, spoken: Generation, size: Size, labels: Sequence[str] | None = None) -> Decoded:
        """Read a reply. size: the image's width and height. labels: those that were asked for; None keeps every label.

        Scores are geometric mean probabilities of the tokens that hold a shape's digits. A number outside the contract
        makes the meaning of all numbers doubtful: then the reply cannot be read at all.
        """
        start = answer_start(spoken.text)
        if start is None:
            return Decoded(self, fault=Fault.UNFINISHED_REASONING)
        text = spoken.text[: start + MAX_TEXT]
        reading = _read(self, text, start)
        reading.truncated |= len(text) < len(spoken.text)
        counts: Counter[Fault] = Counter()
        if reading.truncated or spoken.cut:
            counts[Fault.TRUNCATED] = 1
        if reading.too_many:
            counts[Fault.TOO_MANY] = 1
        lookup = _Labels(labels)
        shapes: dict[tuple[str, tuple[float, ...]], PlacedShape] = {}
        for item in reading.items:
            label = lookup.find(item.label)
            placed = item.fault or (label if isinstance(label, Fault) else self.place(item.numbers, size))
            if isinstance(placed, Fault):
                counts[placed] += 1
                continue
            assert isinstance(label, str)
            if self.shape == "box":
                x0, y0, x1, y1 = placed
                if x0 > x1 or y0 > y1:
                    counts[Fault.SWAPPED_CORNERS] += 1
                    placed = (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))
                if x0 == x1 or y0 == y1:
                    counts[Fault.EMPTY_AREA] += 1
                    continue
            if (label_key(label), placed) in shapes:
                counts[Fault.REPEATED] += 1
            else:
                shapes[label_key(label), placed] = PlacedShape(label, placed, spoken.confidence_of(item.spans))
        fault = self._fault(spoken, start, reading, counts, bool(shapes))
        return Decoded(self, () if fault else tuple(shapes.values()), fault, counts)

    def _fault(
        self, spoken: Generation, start: int, reading: "_Reading", counts: Counter[Fault], any_shape: bool
    ) -> Fault | None:
        """Return why the reply cannot be read, None if it can."""
        if counts[Fault.OUTSIDE_CONTRACT]:
            return Fault.OUTSIDE_CONTRACT
        if any_shape:
            return None
        if counts[Fault.TRUNCATED] and not reading.nothing:
            return Fault.TRUNCATED
        if left_out := [(count, fault) for fault, count in counts.items() if count and fault not in _MENDED]:
            return max(left_out, key=lambda pair: pair[0])[1]
        if reading.nothing:
            return None
        if spoken.text[start:].isspace() or start == len(spoken.text):
            return None if self.empty else Fault.EMPTY_REPLY
        return Fault.NO_SHAPE


class _Labels:
    """The labels that were asked for, to be looked up by a model's word for them: plural or singular, any case."""

    def __init__(self, labels: Sequence[str] | None) -> None:
        self._labels = labels
        self._exact = AskedLabels(labels or ())
        self._forms = {form: label for label in reversed(labels or ()) for form in _forms(label)}

    def find(self, text: str | None) -> str | Fault:
        if self._labels is None:
            return text or ""
        if text is None or not text.strip():
            return self._labels[0] if len(self._labels) == 1 else Fault.MISSING_LABEL
        if (exact := self._exact.find(text)) is not None:
            return exact
        return next((self._forms[form] for form in _forms(text) if form in self._forms), Fault.UNKNOWN_LABEL)


def _forms(label: str) -> tuple[str, ...]:
    key = label_key(label)
    return key, singular_phrase(key), plural_phrase(key)


@dataclass(frozen=True)
class _Item:
    """A shape as it is written. spans: where its digits are in the text. fault: why its numbers are none."""

    label: str | None
    numbers: tuple[float, ...]
    spans: tuple[Span, ...]
    fault: Fault | None = None


@dataclass
class _Reading:
    """A text's shapes. nothing: it says that there are none. truncated: it ends within a shape."""

    items: list[_Item] = field(default_factory=list)
    nothing: bool = False
    truncated: bool = False
    too_many: bool = False

    def add(self, item: _Item) -> None:
        if len(self.items) < MAX_SHAPES:
            self.items.append(item)
        else:
            self.too_many = True


_NOTHING = re.compile(
    r"(?:there (?:are|is) none(?: in (?:the|this) (?:image|picture))?|none|nothing(?: (?:was )?found)?"
    r"|no (?:objects?|boxes|instances|matches|detections)(?: (?:were |was )?(?:found|detected|visible|present))?)[.!]?",
    re.IGNORECASE,
)
_NUMBER = r"[-+]?(?:\d++\.?+\d*+|\.\d++)(?:[eE][-+]?\d++)?+"
_ONE_NUMBER = re.compile(_NUMBER)
_TOKEN = re.compile(
    rf"(?P<number>{_NUMBER})(?![\w.]|\s?%)|(?P<string>\"(?:[^\"\\\n]|\\.)*+\"?+|'(?:[^'\\\n]|\\.|'(?!\s*+[,:}}\]]))*+'?+)"
    r"|(?P<mark>[\[\]{}:,])|(?P<word>[^\W\d]\w*+|\d[\w.]*+(?:\s?%)?+)"
)
_OPENING = re.compile(r"[\[{]")
_KEYS = {
    "box": "bbox_2d box_2d bbox box bounding_box bboxes boxes".split(),
    "point": "point_2d point points coordinates".split(),
    "polygon": "polygon polygons segmentation".split(),
}
_LABELS = "label class class_name category description text_content name object ref name_en".split()
_NAMED = [
    ("x_min", "y_min", "x_max", "y_max"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("x1", "y1", "x2", "y2"),
    ("left", "top", "right", "bottom"),
]


def _number(text: str) -> float:
    return float(text) if len(text) <= MAX_NUMBER else math.inf


@dataclass
class _List:
    start: int
    values: list[Any] = field(default_factory=list)


@dataclass
class _Object:
    start: int
    pairs: dict[str, Any] = field(default_factory=dict)
    scalar: str | None = None
    key: str | None = None


def _put(parent: _List | _Object, value: Any) -> None:
    """Add a value to a list or object. A list that is too long to be coordinates keeps its first values."""
    if isinstance(parent, _List):
        if len(parent.values) <= 4 * MAX_SHAPES:
            parent.values.append(value)
    elif parent.key is not None:
        if len(parent.pairs) < 64:
            parent.pairs[parent.key] = value
        parent.key = None
    else:
        parent.scalar = value if isinstance(value, str) else None


def _read_json(contract: Contract, text: str, start: int, reading: _Reading) -> None:
    """Add the shapes of each object that has a key for coordinates, wherever it stands in the text."""
    stack: list[_List | _Object] = []
    at = start
    while at < len(text) and not reading.too_many:
        match = _TOKEN.search(text, at) if stack else _OPENING.search(text, at)
        if match is None:
            break
        at = match.end()
        mark = match[0] if not stack or match["mark"] else None
        if mark in ("[", "{"):
            if len(stack) == MAX_DEPTH:
                del stack[0]
            stack.append(_List(match.start()) if mark == "[" else _Object(match.start()))
        elif mark in ("]", "}"):
            kind = _List if mark == "]" else _Object
            if not any(isinstance(level, kind) for level in stack):
                continue
            while True:
                closed = stack.pop()
                _close(contract, closed, stack, text, at, reading)
                if isinstance(closed, kind):
                    break
        elif mark == ":":
            top = stack[-1]
            if isinstance(top, _Object):
                top.key = None if top.scalar is None else top.scalar.casefold()
        elif mark is None:
            if match["string"] is not None:
                if len(match[0]) > 1 and match[0][-1] == match[0][0]:
                    _put(stack[-1], _string(match[0]))
            elif match["number"] is not None:
                _put(stack[-1], (_number(match[0]), match.span()))
            else:
                _put(stack[-1], match[0])
    if stack:
        reading.truncated = True
        for level in reversed(stack):
            if isinstance(level, _Object) and any(key in level.pairs for key in contract.label_keys):
                _close(contract, level, [], text, len(text), reading)


def _string(quoted: str) -> str:
    """Return what a string in quotation marks means; one whose escapes are not JSON's as it is written."""
    text = quoted[1:-1]
    if "\\" not in text:
        return text
    if quoted[0] == "'":
        text = re.sub(r"(\\.)|\"", lambda match: (match[1] or '\\"').replace("\\'", "'"), text)
    try:
        return str(from_json(f'"{text}"'))
    except ValueError:
        return quoted[1:-1]


def _close(
    contract: Contract,
    level: _List | _Object,
    stack: list[_List | _Object],
    text: str,
    end: int,
    reading: _Reading,
) -> None:
    """Take a whole list or object to its parent, or its shapes into the reading."""
    parent = stack[-1] if stack else None
    if isinstance(level, _List):
        if not level.values and not text[level.start + 1 : end - 1].strip() and _stands_alone(text, level.start, end):
            reading.nothing = True
        if parent is not None:
            _put(parent, level.values)
        return
    values = _coordinates(contract, level.pairs)
    if values is None:
        return
    if isinstance(parent, _Object) and parent.key in _KEYS[contract.shape]:
        _put(parent, values)
        return
    label = next((level.pairs[key] for key in contract.label_keys if isinstance(level.pairs.get(key), str)), None)
    for numbers in _each(contract, values):
        reading.add(_item(label, numbers))


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Return whether an empty list is the answer: on its own, or the value of a key."""
    before, after = text[max(0, start - 40) : start].rstrip(" \t"), text[end : end + 40].lstrip(" \t")
    return (not before or before[-1] in "\n:>" or before.endswith(("```json", "```"))) and (
        not after or after[0] in "\n`}.<,"
    )


def _coordinates(contract: Contract, pairs: Mapping[str, Any]) -> list[Any] | None:
    """Return the coordinates of an object, None if it has none."""
    for key in (contract.key, *_KEYS[contract.shape]):
        if key in pairs:
            return pairs[key] if isinstance(pairs[key], list) else [pairs[key]]
    if contract.shape == "box":
        for names in _NAMED:
            if all(name in pairs for name in names):
                x0, y0, x1, y1 = (pairs[name] for name in names)
                return [x0, y0, x1, y1] if contract.order == "xy" else [y0, x0, y1, x1]
    elif contract.shape == "point" and "x" in pairs and "y" in pairs:
        return [pairs["x"], pairs["y"]] if contract.order == "xy" else [pairs["y"], pairs["x"]]
    return None


def _each(contract: Contract, values: list[Any]) -> Iterator[list[Any]]:
    """Yield the coordinates of each shape: of one, of several nested ones, or of one written as pairs."""
    if not any(isinstance(value, list) for value in values):
        if values:
            yield values
    elif contract.shape != "point" and all(isinstance(value, list) and len(value) == 2 for value in values):
        yield [number for pair in values for number in pair]
    else:
        for value in values:
            yield value if isinstance(value, list) else [value]


def _item(label: str | None, values: Sequence[Any]) -> _Item:
    numbers, spans = [], []
    for value in values:
        if isinstance(value, str) and _ONE_NUMBER.fullmatch(value.strip()):
            numbers.append(_number(value.strip()))
        elif isinstance(value, tuple):
            numbers.append(value[0])
            spans.append(value[1])
        else:
            return _Item(label, (), (), Fault.NOT_A_NUMBER)
    if math.inf in numbers:
        return _Item(label, (), (), Fault.OUTSIDE_CONTRACT)
    return _Item(label, tuple(numbers), tuple(spans))


_KEYED = re.compile(r"[\"':%]")
_BRACKET = re.compile(rf"(?P<number>{_NUMBER})|[\[\](){{}}<>;]")


def _groups(text: str, start: int, end: int) -> Iterator[list[Any]]:
    """Yield the numbers of each innermost pair of brackets; two pairs of round ones, as (x0,y0),(x1,y1), are one."""
    group: list[Any] = []
    for match in _BRACKET.finditer(text, start, end):
        if match["number"]:
            if len(group) <= 4 * MAX_SHAPES:
                group.append((_number(match[0]), match.span()))
        elif group and not (match[0] in "()" and len(group) == 2):
            yield group
            group = []
    if group:
        yield group


def _read_tags(contract: Contract, text: str, start: int, reading: _Reading) -> None:
    """Add the shapes between the contract's tags. A label holds for the numbers that follow it."""
    assert contract.tags is not None
    begin, close = contract.tags.numbers
    label: str | None = None
    while not reading.too_many:
        at = text.find(begin, start)
        if at < 0:
            return
        if contract.tags.label is not None:
            opening, closing = contract.tags.label
            last = text.rfind(opening, start, at)
            label_end = text.find(closing, last + len(opening), at) if last >= 0 else -1
            label = text[last + len(opening) : label_end] if label_end >= 0 else label
        end = text.find(close, at + len(begin))
        reading.truncated |= end < 0
        groups = list(_groups(text, at + len(begin), len(text) if end < 0 else end))
        if end < 0 and not text[at:].rstrip().endswith(("]", ")")):
            groups = groups[:-1]  # its last number may lack digits
        if end >= 0 and not groups:
            reading.nothing |= not text[at + len(begin) : end].strip("[] \n")
        for group in groups:
            reading.add(_item(label, group))
        if end < 0:
            return
        start = end + len(close)


def _read_brackets(contract: Contract, text: str, start: int, reading: _Reading) -> None:
    """Add each list of exactly as many bare numbers as a shape has. `[0, 1]` in prose is none.

    Numbers under keys (`"width": 30`) and percentages are not bare: they mean something else than the contract's.
    """
    length = {"box": 4, "point": 2}.get(contract.shape)
    last = max(text.rfind(mark) for mark in "])>")
    for group in _groups(text, start, len(text)):
        if len(group) == length and not reading.too_many:
            if _KEYED.search(text, group[0][1][0], group[-1][1][1]):
                continue
            if group[-1][1][1] > last:
                reading.truncated = True
            else:
                reading.add(_item(None, group))


def _read_locations(contract: Contract, text: str, start: int, reading: _Reading) -> None:
    """Add the shapes of location tokens, each run of which has one label, before it or after it."""
    before = contract.style == "label_locations"
    pieces = _location_pieces(contract.location).split(text[start:])
    token = re.compile(re.escape(contract.location).replace(r"\{\}", r"(\d{1,6})"))
    at = start
    label = ""
    runs: list[tuple[str, list[Any]]] = []
    for index, piece in enumerate(pieces):
        if index % 2:
            values = [(float(match[1]), (at + match.start(), at + match.end())) for match in token.finditer(piece)]
            runs.append((label, values))
        else:
            label = re.sub(r"</?s>|<pad>|<poly>|</poly>|<eos>", "", piece).strip().strip(";").strip()
            if not before and runs and not runs[-1][0]:
                runs[-1] = (label.partition(";")[0].strip(), runs[-1][1])
            label = label if before else ""
        at += len(piece)
    named = ""
    size = {"box": 4, "point": 2}.get(contract.shape)
    for label, values in runs:
        named = label if label or not before else named  # a run without a label continues the earlier one
        step = size if size and len(values) % size == 0 else len(values)
        for first in range(0, len(values), max(1, step)):
            reading.add(_item(named or None, values[first : first + step]))


@functools.cache
def _location_pieces(location: str) -> re.Pattern[str]:
    """Return a pattern that splits a text at runs of location tokens and keeps the runs."""
    token = re.escape(location).replace(r"\{\}", r"\d{1,6}")
    return re.compile(rf"((?:{token}\s*+)++)")


_POINTS = re.compile(r"<(points?)\b([^<>]*+)(?:/>|>([^<]*+)(</\1>)?+)")
_ATTRIBUTE = re.compile(r'(\w++)="([^"]*+)"')
_TRIPLE = re.compile(r"(?<![\d.])(\d++) (\d{3,4}) (\d{3,4})(?![\d.])")


def _read_points(contract: Contract, text: str, start: int, reading: _Reading) -> None:
    """Add Molmo 2's points: `<points coords="1 1 123 456 2 200 300">label</points>` has the picture's number, then each
    point's number, x and y. Molmo 1 wrote x and y as attributes, in hundredths: that is another contract."""
    for match in _POINTS.finditer(text, start):
        attributes = {name: (value, at) for name, value, at in _attributes(match)}
        label = (match[3] or "").strip() or attributes.get("label", attributes.get("alt", ("", 0)))[0]
        value, at = attributes.get("coords", ("", 0))
        if value:
            for piece in re.finditer(r"[^;\t:]++", value):
                _, _, triples = piece[0].strip().partition(" ")
                offset = at + piece.start() + piece[0].find(triples)
                for triple in _TRIPLE.finditer(triples):
                    spans = [(offset + triple.start(group), offset + triple.end(group)) for group in (2, 3)]
                    reading.add(_item(label, [(float(triple[2]), spans[0]), (float(triple[3]), spans[1])]))
            continue
        for number in ["", *range(1, MAX_SHAPES)]:
            if f"x{number}" in attributes and f"y{number}" in attributes:
                pair = [attributes[f"{axis}{number}"] for axis in "xy"]
                if all(_ONE_NUMBER.fullmatch(value) for value, _ in pair):
                    reading.add(_item(label, [(_number(value), (at, at + len(value))) for value, at in pair]))
            elif number:
                break
    reading.truncated |= text.rfind("<point") > text.rfind(">")


def _attributes(match: re.Match[str]) -> Iterator[tuple[str, str, int]]:
    for attribute in _ATTRIBUTE.finditer(match[2]):
        yield attribute[1], attribute[2], match.start(2) + attribute.start(2)


def _read(contract: Contract, text: str, start: int) -> _Reading:
    """Read the text in the contract's style; where that is JSON, tags or brackets, in whichever of them it is."""
    reading = _Reading()
    bare = re.sub(r"```\w*|<\|[^|<>]*\|>|</?answer>", "", text[start:]).strip()
    if _NOTHING.fullmatch(bare):
        reading.nothing = True
    elif contract.style in ("label_locations", "locations_label"):
        _read_locations(contract, text, start, reading)
    elif contract.style == "points":
        _read_points(contract, text, start, reading)
    else:
        _read_json(contract, text, start, reading)
        if not reading.items and contract.tags is not None:
            _read_tags(contract, text, start, reading)
        if not reading.items and not reading.nothing:
            _read_brackets(contract, text, start, reading)
    return reading


Written = Sequence[tuple[str, list[str]]]


def _write_json(contract: Contract, shapes: Written) -> str:
    rows = []
    for label, numbers in shapes:
        quoted = '"' + label.replace("\\", "\\\\").replace('"', '\\"') + '"'
        values = f"[[{', '.join(numbers)}]]" if contract.nested else f"[{', '.join(numbers)}]"
        if not contract.key:
            names = _NAMED[0]
            order = numbers if contract.order == "xy" else [numbers[at] for at in (1, 0, 3, 2)]
            named = ", ".join(f'"{name}": {value}' for name, value in zip(names, order, strict=True))
            rows.append(f'{{{named}, "label": {quoted}}}')
        else:
            rows.append(f'{{"{contract.key}": {values}, "label": {quoted}}}')
    return "[" + ", ".join(rows) + "]"


def _write_tags(contract: Contract, shapes: Written) -> str:
    assert contract.tags is not None
    opening, closing = contract.tags.label or ("", "")
    begin, end = contract.tags.numbers
    texts = []
    for label, numbers in shapes:
        if contract.nested:
            text = f"[[{', '.join(numbers)}]]"
        else:
            text = ",".join(f"({x},{y})" for x, y in zip(numbers[::2], numbers[1::2], strict=True))
        name = f"{opening}{label}{closing}" if contract.tags.label else ""
        texts.append(f"{name}{begin}{text}{end}")
    return "".join(texts) or "[]"


def _write_brackets(contract: Contract, shapes: Written) -> str:
    return ", ".join(f"[{', '.join(numbers)}]" for _, numbers in shapes) or "[]"


def _write_locations(contract: Contract, shapes: Written) -> str:
    width = 4 if contract.location == "<loc{}>" else 0
    rows = []
    for label, numbers in shapes:
        locations = "".join(contract.location.format(number.zfill(width)) for number in numbers)
        rows.append(f"{label}{locations}" if contract.style == "label_locations" else f"{locations} {label}")
    return ("" if contract.style == "label_locations" else " ; ").join(rows)


def _write_points(contract: Contract, shapes: Written) -> str:
    rows: dict[str, list[list[str]]] = {}
    for label, numbers in shapes:
        rows.setdefault(label, []).append([number if contract.decimals else number.zfill(3) for number in numbers])
    texts = []
    for label, points in rows.items():
        if contract.decimals:
            axes = " ".join(f'x{index}="{x}" y{index}="{y}"' for index, (x, y) in enumerate(points, 1))
            texts.append(f'<points {axes} alt="{label}">{label}</points>')
            continue
        coords = " ".join(f"{index} {x} {y}" for index, (x, y) in enumerate(points, 1))
        texts.append(f'<points coords="1 {coords}">{label}</points>')
    return " ".join(texts) or "There are none."


_WRITERS: Mapping[str, Callable[[Contract, Written], str]] = {
    "json": _write_json,
    "tags": _write_tags,
    "brackets": _write_brackets,
    "label_locations": _write_locations,
    "locations_label": _write_locations,
    "points": _write_points,
}


_QWEN_TAGS = Tags(("<|object_ref_start|>", "<|object_ref_end|>"), ("<|box_start|>", "<|box_end|>"))
_INTERN_TAGS = Tags(("<ref>", "</ref>"), ("<box>", "</box>"))
_GLM_TAGS = Tags(None, ("<|begin_of_box|>", "<|end_of_box|>"))
_DEEPSEEK_TAGS = Tags(("<|ref|>", "<|/ref|>"), ("<|det|>", "<|/det|>"))

LLAVA = Contract("llava", scale=1, style="brackets", decimals=2, padded=True, slack=0)
# training bins are round(v * 1023); the evaluators of big_vision divide by the same
PALIGEMMA = Contract("paligemma", 1023, "yx", "locations_label", location="<loc{}>", empty=True, slack=0)
QWEN2_VL = Contract("qwen2_vl", style="tags", tags=_QWEN_TAGS)
QWEN2_5_VL = Contract("qwen2_5_vl", scale=None, resized=Multiples(28, 56 * 56, 12_845_056))
QWEN2_5_VL_POINTS = Contract("qwen2_5_vl_points", scale=None, shape="point", key="point_2d", resized=QWEN2_5_VL.resized)
QWEN3_VL = Contract("qwen3_vl", tags=_QWEN_TAGS)
QWEN3_VL_POINTS = Contract("qwen3_vl_points", shape="point", key="point_2d")
GEMMA4 = Contract("gemma4", order="yx", key="box_2d")
INTERNVL = Contract("internvl", style="tags", nested=True, tags=_INTERN_TAGS)
GLM4V = Contract("glm4v", style="tags", nested=True, tags=_GLM_TAGS)
MOLMO2 = Contract("molmo2", style="points", shape="point")
MOLMO = Contract("molmo", scale=100, style="points", shape="point", decimals=1)
LFM2_VL = Contract("lfm2_vl", scale=1, key="bbox", decimals=2)
LFM2_VL_3B = Contract("lfm2_vl_3b", key="bbox")
SMOLVLM = Contract("smolvlm", scale=1, key="bbox", decimals=2)
DEEPSEEK_VL2 = Contract("deepseek_vl2", 999, style="tags", nested=True, tags=_DEEPSEEK_TAGS)
FLORENCE2 = Contract("florence2", 999, style="label_locations", empty=True)
FLORENCE2_POLYGONS = Contract("florence2_polygons", 999, style="label_locations", shape="polygon", empty=True)
MISTRAL = Contract("mistral", 999, key="bbox")
MUSE_GLIMMER = Contract("muse_glimmer", key="")

CONTRACTS = {
    contract.name: contract
    for contract in (
        LLAVA, PALIGEMMA, QWEN2_VL, QWEN2_5_VL, QWEN2_5_VL_POINTS, QWEN3_VL, QWEN3_VL_POINTS, GEMMA4, INTERNVL, GLM4V,
        MOLMO2, MOLMO, LFM2_VL, LFM2_VL_3B, SMOLVLM, DEEPSEEK_VL2, FLORENCE2, FLORENCE2_POLYGONS, MISTRAL, MUSE_GLIMMER,
    )
}  # fmt: skip
