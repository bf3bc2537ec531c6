"""A second language for the same facts, for evaluation alone: no toy has been trained on a sentence of it.

It was written apart from grammar.py: other templates, other words for a thing, and things not there of which a half
occur in no training question. `exam_questions(2000, seed)` asks on fresh scenes.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from serve.toy.varied import grammar
from serve.toy.varied.facts import Fact, Wording
from serve.toy.varied.kinds import KINDS
from serve.toy.varied.scenes import BUILT_IN, VariedScene, varied_scene

FRESH = 20_000_000
"""The first seed of the scenes; training uses seeds below, as for the first world."""

EXAM = Wording(
    templates={
        "color_of": (
            "can you say what color {thing} is",
            "I would like to know the color of {thing}.",
            "what would you call the color of {thing}",
            "{thing}: what color",
            "what is the color that {thing} has",
        ),
        "shape_of": (
            "can you say what shape {thing} is",
            "{thing}: what shape",
            "I would like to know the shape of {thing}.",
            "what would you call {thing}",
            "what geometric shape is {thing}",
        ),
        "style_of": (
            "has {thing} been filled or only outlined",
            "is {thing} solid or just an outline",
        ),
        "attributes_of": (
            "can you describe {thing}",
            "what does {thing} look like, color and shape",
            "I would like to know color and shape of {thing}.",
        ),
        "extreme": (
            "can you tell me which is {thing}",
            "which one would you call {thing}",
            "of all of them, what is {thing}",
        ),
        "count_all": (
            "how many {things} would you say there are",
            "can you count the {things} for me",
            "there are how many {things}",
            "give me the number of {things}.",
        ),
        "count": (
            "how many {things} would you count",
            "there are how many {things}",
            "can you tell me how many {things} there are",
            "give me the number of {things}.",
        ),
        "count_other": (
            "if you leave out {other}, how many {things} are left",
            "how many of the {things} are something other than {other}",
        ),
        "count_colors": (
            "the {things} come in how many colors",
            "can you count the different colors of the {things}",
        ),
        "count_kinds": (
            "can you count the different kinds of shapes",
            "how many sorts of shape can you make out",
        ),
        "is_count": (
            "{be} {number}, or am I mistaken",
            "can you see {number}, no more and no less",
        ),
        "more": (
            "would you count more {first} than {second}",
            "are {first} more numerous than {second}",
        ),
        "which_more": (
            "of which are there more: {first} or {second}",
            "would you count more {first} or more {second}",
        ),
        "exists": (
            "would you say there is {thing}",
            "has the picture got {thing}",
            "could you find {thing} in there",
            "does {thing} appear anywhere",
        ),
        "exists_any": (
            "has the picture got any {things}",
            "do any {things} appear in it",
            "could you find any {things}",
        ),
        "exists_no": (
            "is it correct that there are no {things}",
            "does the picture lack a {thing}",
            "would you say that there isn't any {thing}",
        ),
        "exists_both": (
            "has the picture got {first} as well as {second}",
            "could you find {first} and also {second}",
        ),
        "exists_beside": (
            "has {thing} got {other} {relation} it",
            "can you find {other} {relation} {thing}",
        ),
        "absent": (
            "has the picture got {thing} in it",
            "would you say there are any {things}",
            "could you find {thing}",
            "does {thing} appear in the picture",
        ),
        "absent_count": (
            "can you tell me how many {things} there are",
            "there are how many {things}",
            "how many {things} would you count",
        ),
        "absent_what": (
            "can you say what color {thing} is",
            "could you tell me what {thing} is doing",
            "which way is {thing} looking",
            "where would I find {thing}",
        ),
        "is_color": (
            "would you call {thing} {color}",
            "can one say that {thing} is {color}",
            "has {thing} got a {color} color",
        ),
        "is_not_color": (
            "is it correct that {thing} is not {color}",
            "would you say that {thing} isn't {color}",
        ),
        "is_kind": (
            "would you call {thing} {kind}",
            "can one say that {thing} is {kind}",
            "has {thing} got the shape of {kind}",
        ),
        "is_style": (
            "would you call {thing} {style}",
            "can one say that {thing} is {style}",
        ),
        "either_color": (
            "would you call {thing} {first} or {second}",
            "which color has {thing} got: {first} or {second}",
        ),
        "either_kind": (
            "would you call {thing} {first} or {second}",
            "which is {thing}: {first} or {second}",
        ),
        "all_same": (
            "would you say that every one of the {things} belongs to the {value} ones",
            "is it correct that the {things} are all {value}",
        ),
        "same_color": (
            "would you say {first} and {second} share one color",
            "have {first} and {second} got the same color",
        ),
        "same_kind": (
            "would you say {first} and {second} share one shape",
            "have {first} and {second} got the same shape",
        ),
        "which_bigger": (
            "of {first} and {second}, which is the bigger one",
            "would you say {first} or {second} is the larger",
            "comparing {first} with {second}, which is larger",
        ),
        "which_smaller": (
            "of {first} and {second}, which is the smaller one",
            "comparing {first} with {second}, which is smaller",
        ),
        "is_bigger": (
            "would you say that {first} is bigger than {second}",
            "has {first} got a larger size than {second}",
        ),
        "is_smaller": (
            "would you say that {first} is smaller than {second}",
            "has {first} got a smaller size than {second}",
        ),
        "size_of": (
            "would you call {thing} small, medium or big",
            "can you say how big {thing} is",
        ),
        "where": (
            "can you tell me where {thing} is",
            "where would I find {thing}",
            "whereabouts is {thing}",
            "in what part of the picture would you look for {thing}",
        ),
        "where_written": (
            "can you tell me where {text} is",
            "whereabouts is {text}",
        ),
        "side": (
            "would you say {first} is {relation} {second}",
            "can one say that {first} is {relation} {second}",
            "is it correct that {first} is {relation} {second}",
        ),
        "which_side": (
            "would you say {first} is {sides} {second}",
            "seen from {second}, is {first} {sides} it",
        ),
        "beside": (
            "can you say what is {relation} {thing}",
            "what would I find {relation} {thing}",
            "looking {relation} {thing}, what do you see",
        ),
        "nearest": (
            "what would I find right next to {thing}",
            "{thing} is closest to what",
        ),
        "between": (
            "what would I find between {first} and {second}",
            "can you say what lies between {first} and {second}",
        ),
        "place": (
            "what would I find {place}",
            "can you say what is {place}",
            "looking {place}, what do you see",
        ),
        "background": (
            "can you say what color the background is",
            "the background: what color",
            "what color is there behind everything",
        ),
        "is_background": (
            "would you call the background {color}",
            "has the picture got a {color} background",
        ),
        "texture": (
            "would you call the background plain, graded or noisy",
            "the background: plain, graded or noisy",
        ),
        "read": (
            "can you tell me what it says",
            "could you read the text to me",
            "what would you read here",
            "which letters or digits are written",
        ),
        "has_text": (
            "has the picture got any text in it",
            "would you say there is any writing",
            "is there something to read",
        ),
        "is_written": (
            "would you read it as {word}",
            "has somebody written {word} in it",
        ),
        "word_or_number": (
            "would you call the text a word or a number",
            "which is written: a word or a number",
        ),
        "color_written": (
            "can you say what color {text} is",
            "what is the color that {text} has",
        ),
        "everything": (
            "can you tell me what is in the picture",
            "could you describe what you see",
            "what would you say this shows",
            "give me a list of everything here.",
            "what is going on in this picture",
        ),
        "kinds": (
            "can you list the different shapes, not the colors",
            "which kinds of shape would you find here",
        ),
        "colors": (
            "can you list the colors of the {things}",
            "the {things} have which colors",
        ),
        "kinds_of_color": (
            "of the {things}, which are {color}",
            "can you tell me which {things} are {color}",
        ),
        "colors_of_kind": (
            "can you list the colors of the {things}",
            "the {things} have which colors",
        ),
        "medium": (
            "would you call this {medium}",
            "have I got {medium} here",
        ),
        "letter": (
            "can you tell me which letter of {text} comes {end}",
            "of all the letters in {text}, which one is {end}",
            "if you had to spell {text}, what would be the {end} letter",
            "give me the {end} letter of {text}.",
        ),
        "count_letters": (
            "how long is {text}, counted in letters",
            "{text} is made up of how many letters",
            "can you count the letters of {text} for me",
            "how many letters would it take to spell {text}",
        ),
        "is_color_written": (
            "has somebody written {text} in {color}",
            "is it correct that {text} appears in {color}",
            "can one say that {text} is {color}",
            "is {color} the color that {text} has",
        ),
        "half": (
            "would you say {thing} is {sides}",
            "can you tell me whether {thing} is {sides}",
            "where should someone look for {thing}: {sides}",
            "if the picture were cut in two, would {thing} be {sides}",
        ),
        "is_place": (
            "would you say that {thing} is {place}",
            "is it correct that {thing} sits {place}",
            "has somebody put {thing} {place}",
            "{place}, is that where {thing} is",
        ),
        "same_two": (
            "would you say the two {things} share one color",
            "have both {things} got the same color",
            "did somebody paint the two {things} in one and the same color",
            "when you compare the two {things}, is their color the same",
        ),
        "which_not": (
            "leaving out every {noun} that is {thing_name}, what is left",
            "what is the only {noun} here that is not {thing_name}",
            "there is one {noun} that isn't {thing_name}: which one",
            "which {noun} would you not call {thing_name}",
        ),
        "is_over": (
            "has the picture got {amount} {things}",
            "would you say there are {amount} {things}",
            "counting the {things}, do you get {amount}",
            "is it correct that {amount} {things} are shown here",
        ),
    },
    nouns={"shape": "shapes", "object": "objects", "thing": "things"},
    references={
        "kind": ("{kind}",),
        "color": ("{noun} that is {color}", "{color} colored {noun}", "{noun} in {color}"),
        "color kind": ("{kind} that is {color}", "{color} colored {kind}", "{color} {kind}"),
        "style": ("{noun} that is {style}",),
        "style kind": ("{kind} that is {style}",),
        "style color": ("{color} {noun} that is {style}",),
        "style color kind": ("{color} {kind} that is {style}",),
    },
    extremes={
        "left": ("{noun} that is furthest left", "very leftmost {noun}", "{noun} nearest the left edge"),
        "right": ("{noun} that is furthest right", "very rightmost {noun}", "{noun} nearest the right edge"),
        "top": ("{noun} that is highest", "very topmost {noun}", "{noun} nearest the top edge"),
        "bottom": ("{noun} that is lowest", "very lowest {noun}", "{noun} nearest the bottom edge"),
        "biggest": ("{noun} that is biggest", "very biggest {noun}", "{noun} with the largest size"),
        "smallest": ("{noun} that is smallest", "very smallest {noun}", "{noun} with the smallest size"),
    },
    relations={
        "left": ("left from", "further left than", "somewhere left of"),
        "right": ("right from", "further right than", "somewhere right of"),
        "above": ("higher up than", "somewhere above", "up above"),
        "below": ("lower down than", "somewhere below", "down below"),
    },
    places={
        "top left": ("in the left top corner", "up in the top left"),
        "top right": ("in the right top corner", "up in the top right"),
        "bottom left": ("in the left bottom corner", "down in the bottom left"),
        "bottom right": ("in the right bottom corner", "down in the bottom right"),
        "middle": ("right in the middle", "around the center"),
    },
    openings=("excuse me,", "ok,", "one question:", "I wonder:", "be so kind:"),
    endings=("if you can see it", "would you say", "if I may ask", "thank you"),
    phrases=("any of the {things}", "each of the {things}", "{things} of any size", "whatever {things} there are"),
    written=("writing there", "piece of text"),
    strangers=(
        "dog", "cat", "person", "man", "woman", "car", "tree", "house", "bird", "horse", "child", "flower",
        "giraffe", "guitar", "sofa", "spoon", "bridge", "castle", "robot", "candle", "tomato", "lamp", "zebra", "knife",
    ),
)  # fmt: skip


@dataclass(frozen=True)
class ExamQuestion:
    """A question about a scene, and the fact that answers it."""

    scene: VariedScene
    text: str
    fact: Fact


def exam_questions(count: int, seed: int = 0, fonts: Sequence[str] = BUILT_IN) -> Iterator[ExamQuestion]:
    """Yield `count` questions, the kinds in turn, each about a fresh scene that allows it."""
    kinds = tuple(KINDS)
    at = FRESH + seed
    for index in range(count):
        while True:
            scene = varied_scene(at, fonts=fonts)
            pair = grammar.phrased(scene, kinds[index % len(kinds)], random.Random(f"exam {at}"), EXAM)
            at += 1
            if pair is not None:
                yield ExamQuestion(scene, *pair)
                break
