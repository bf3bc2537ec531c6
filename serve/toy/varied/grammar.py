"""The language that toys are trained on: how people ask about a picture, kind of fact by kind of fact.

`[a|b|]` is said in one of these ways, {thing} is filled in by kinds.py. A template is a question, and gets its question
mark (or none) when it is typed; one that ends in a full stop is a request.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from serve.toy.varied.facts import Fact, Phraser, Wording, chosen, expansions
from serve.toy.varied.kinds import KINDS
from serve.toy.varied.names import COLOR_NAMES, NOUNS, RARE_NOUNS, SHAPE_NAMES, STYLE_OTHERS, plural_name
from serve.toy.varied.scenes import Thing, VariedScene

TEMPLATES: dict[str, tuple[str, ...]] = {
    kind: tuple(texts) for kind, texts in json.loads(Path(__file__).with_name("templates.json").read_text()).items()
}  # fmt: skip

SYNONYMS: dict[str, tuple[str, ...]] = {
    "picture": ("image", "photo", "pic", "drawing", "scene", "graphic", "illustration", "photograph", "sketch"),
    "image": ("picture", "photo", "pic", "drawing", "scene", "graphic"),
    "see": ("spot", "find", "notice", "make out", "recognize", "identify", "detect", "observe", "view"),
    "shown": ("displayed", "visible", "depicted", "pictured", "presented", "represented"),
    "contain": ("include", "hold", "feature", "comprise"),
    "show": ("depict", "display", "feature", "present", "include"),
    "different": ("distinct", "unique", "separate", "various", "differing"),
    "distinct": ("different", "unique", "separate"),
    "kinds": ("types", "sorts", "varieties", "categories", "classes"),
    "kind": ("type", "sort", "variety", "category", "class"),
    "name": ("state", "give", "identify", "list", "specify", "mention"),
    "tell": ("show", "inform", "give"),
    "color": ("hue", "shade", "tint", "tone"),
    "colors": ("hues", "shades", "tints", "tones"),
    "colored": ("painted", "tinted", "shaded"),
    "bigger": ("larger", "greater", "more massive"),
    "larger": ("bigger", "greater"),
    "smaller": ("tinier", "littler", "more tiny"),
    "background": ("backdrop", "ground", "back"),
    "written": ("printed", "spelled out", "displayed", "typed", "inscribed", "noted"),
    "drawn": ("painted", "rendered", "made", "done", "sketched", "created"),
    "painted": ("drawn", "colored", "rendered", "done"),
    "text": ("writing", "lettering", "inscription"),
    "describe": ("explain", "portray", "summarize", "sum up", "depict"),
    "count": ("add up", "total", "tally"),
    "missing": ("absent", "gone", "not present", "not there"),
    "same": ("identical", "equal", "matching", "very same"),
    "true": ("correct", "right", "a fact", "the case", "so"),
    "position": ("location", "spot", "place"),
    "part": ("area", "region", "section", "portion", "zone"),
    "look": ("appear", "seem"),
    "exactly": ("precisely", "just"),
    "somewhere": ("anywhere",),
    "anything": ("something",),
    "here": ("in here", "over here"),
}
"""Words of templates with others that may stand in their place."""

TRAINING = Wording(
    templates=TEMPLATES,
    nouns={
        "shape": "shapes", "thing": "things", "object": "objects", "figure": "figures", "item": "items",
        "element": "elements", "form": "forms", "symbol": "symbols", "piece": "pieces",
    },
    references={
        "kind": ("{kind}",),
        "color": (
            "{color} one", "{color} one", "{color} {noun}", "{color} {noun}", "{noun} that is {color}",
            "{noun} [in|colored|painted] {color}", "{color} colored {noun}", "{color}-colored {noun}",
            "{noun} with [the|a] color {color}",
        ),
        "color kind": (
            "{color} {kind}", "{color} {kind}", "{color} {kind}", "{color} {kind}", "{color} {kind}",
            "{kind} that is {color}", "{kind} [in|colored|painted] {color}", "{color} colored {kind}",
            "{color}-colored {kind}", "{kind} with [the|a] color {color}",
        ),
        "style": ("{style} one", "{style} {noun}", "{style} {noun}", "{noun} that is {style}"),
        "style kind": ("{style} {kind}", "{style} {kind}", "{style} {kind}", "{kind} that is {style}"),
        "style color": (
            "{style} {color} one", "{style} {color} {noun}", "{color} {style} one", "{color} {noun} that is {style}",
            "{style} {noun} [in|that is] {color}",
        ),
        "style color kind": (
            "{style} {color} {kind}", "{style} {color} {kind}", "{color} {style} {kind}",
            "{color} {kind} that is {style}", "{style} {kind} [in|that is] {color}",
        ),
    },
    extremes={
        "left": (
            "leftmost {noun}", "{noun} [furthest|farthest] to the left", "{noun} on the far left",
            "[first|very first] {noun} from the left", "most left {noun}", "{noun} furthest left", "left-most {noun}",
            "{noun} [nearest to|closest to|at] the left [edge|border|side]", "{noun} that is most left",
        ),
        "right": (
            "rightmost {noun}", "{noun} [furthest|farthest] to the right", "{noun} on the far right",
            "[first|very first] {noun} from the right", "most right {noun}", "{noun} furthest right",
            "right-most {noun}", "{noun} [nearest to|closest to|at] the right [edge|border|side]",
            "{noun} that is most right", "last {noun} from the left",
        ),
        "top": (
            "topmost {noun}", "highest {noun}", "{noun} [nearest to|closest to] the top", "{noun} at the very top",
            "{noun} furthest up", "uppermost {noun}", "{noun} that is [highest up|furthest up]", "upper {noun}",
            "first {noun} from [the top|above]", "{noun} [nearest to|closest to|at] the [upper|top] [edge|border]",
        ),
        "bottom": (
            "lowest {noun}", "{noun} [nearest to|closest to] the bottom", "{noun} at the very bottom",
            "{noun} furthest down", "bottommost {noun}", "lowermost {noun}", "{noun} that is furthest down",
            "first {noun} from [the bottom|below]",
            "{noun} [nearest to|closest to|at] the [lower|bottom] [edge|border]",
        ),
        "biggest": (
            "biggest {noun}", "largest {noun}", "biggest of the shapes", "biggest one", "largest one",
            "{noun} that is largest", "{noun} which is [biggest|largest]",
            "{noun} with the [largest|biggest|most] area",
            "{noun} of the [largest|biggest|greatest] size", "{noun} that takes up the most [space|room]",
            "[biggest|largest] of all {noun}s", "largest of [them|them all]", "hugest {noun}", "greatest {noun}",
        ),
        "smallest": (
            "smallest {noun}", "tiniest {noun}", "smallest of the shapes", "smallest one", "littlest {noun}",
            "{noun} which is smallest", "{noun} with the [smallest|least] area",
            "{noun} of the smallest size", "{noun} that takes up the least [space|room]",
            "smallest of all {noun}s", "smallest of [them|them all]",
        ),
    },
    relations={
        "left": (
            "left of", "to the left of", "on the left of", "on the left side of", "at the left of",
            "[more|farther] left than", "[further|more] to the left than", "on the left hand side of",
        ),
        "right": (
            "right of", "to the right of", "on the right of", "on the right side of", "at the right of",
            "[more|farther] right than", "[further|more] to the right than", "on the right hand side of",
        ),
        "above": (
            "above", "over", "higher than", "on top of", "further up than", "[directly|right|just] above",
            "located above", "anywhere above", "up from", "at the top of",
        ),
        "below": (
            "below", "under", "lower than", "beneath", "underneath", "further down than",
            "[directly|right|just] below", "located below", "anywhere below", "down from",
        ),
    },
    places={
        "top left": (
            "in the [top left|upper left] [corner|]", "at the top left", "on the top left", "at top left",
            "in the [top left|upper left|left upper] [part|area|region|quarter|side|section]", "up on the left",
            "in the upper left hand corner", "on the left at the top", "in the corner at the top left",
        ),
        "top right": (
            "in the [top right|upper right] [corner|]", "at the top right", "on the top right", "at top right",
            "in the [top right|upper right|right upper] [part|area|region|quarter|side|section]", "up on the right",
            "in the upper right hand corner", "on the right at the top", "in the corner at the top right",
        ),
        "bottom left": (
            "in the [bottom left|lower left] [corner|]", "at the bottom left", "on the bottom left", "at bottom left",
            "in the [bottom left|lower left|left lower] [part|area|region|quarter|side|section]", "down on the left",
            "in the lower left hand corner", "on the left at the bottom",
            "in the corner at the bottom left",
        ),
        "bottom right": (
            "in the [bottom right|lower right] [corner|]", "at the bottom right", "on the bottom right",
            "in the [bottom right|lower right|right lower] [part|area|region|quarter|side|section]",
            "down on the right", "in the lower right hand corner", "on the right at the bottom",
            "at bottom right", "in the corner at the bottom right",
        ),
        "middle": (
            "in the [middle|center] [of the picture|of the image|]", "at the center", "in the middle of it",
            "[just|exactly] in the [middle|center]", "in the [central|middle] [part|area|region|section]",
            "at the [very center|middle]", "around the middle", "centrally",
        ),
    },
    openings=(
        "please", "please tell me", "hey", "hi", "hello", "so", "tell me", "um", "quick question", "look", "okay",
        "well", "now", "and", "good morning", "excuse me", "sorry", "listen", "one question", "my question is",
        "[can|could|would] you tell me", "can you say", "do you know", "I want to know", "I would like to know",
        "I wonder", "just curious", "just", "help me", "help me out", "let me ask", "could you say", "you there",
        "question", "next", "thanks, and", "ok", "be honest", "answer this", "first", "dear model",
    ),
    endings=(
        "please", "thanks", "in the picture", "in this picture", "in the image", "here", "do you think", 
        "thx", "pls", "in your opinion", "on the picture", "on this image", "in the photo", "in the drawing",
        "in the scene", "I wonder", "can you tell", "can you tell me", "by the way", "at all", "right now", "there",
        "in it", "exactly", "in one word", "if you look closely", "as you see it", "in this one", "on the image",
        "shown here", "answer briefly", "in front of you",
    ),
    phrases=(
        "{things}", "{things}", "all {things}", "all the {things}", "the {things}", "every one of the {things}",
        "any {things}", "all of the {things}",
    ),
    written=("text", "writing", "lettering", "inscription", "label"),
    strangers=(*NOUNS, *RARE_NOUNS),
    synonyms=SYNONYMS,
)  # fmt: skip


def phrased(scene: VariedScene, kind: str, rng: random.Random, wording: Wording = TRAINING) -> tuple[str, Fact] | None:
    """Ask about a fact of a kind in KINDS: a question as typed, and the fact; None where the scene gives none."""
    phraser = Phraser(scene, rng, wording)
    fact = KINDS[kind][1](phraser)
    if fact is None:
        return None
    text = typed(worded(fact, phraser), rng, wording)
    # of other things that were thought of, a phrase could be a part of one that is in the question
    meant = {phrase: phraser.meant[phrase] for phrase in fact.slots.values() if phrase in phraser.meant}
    return text, replace(fact, meant=meant, counts=phraser.counts, about=phraser.about)


def worded(fact: Fact, phraser: Phraser) -> str:
    """Return a fact as a question of the wording, in small letters and without its question mark."""
    relation = phraser.pick(phraser.wording.relations[phraser.rng.choice(tuple(phraser.wording.relations))])
    template = in_synonyms(phraser.pick(phraser.wording.templates[fact.kind]), phraser)
    return template.format(**{"relation": relation, **fact.slots})


def in_synonyms(template: str, phraser: Phraser) -> str:
    """Return a template with a third of the words that have synonyms replaced by one."""
    synonyms = phraser.wording.synonyms

    def other(match: re.Match[str]) -> str:
        listed = synonyms.get(match[0], ())
        return phraser.rng.choice(listed) if listed and phraser.rng.random() < 1 / 3 else match[0]

    return re.sub(r"{\w+}|[a-z]+", other, template)


def some_questions(
    scene: VariedScene, rng: random.Random, count: int, wording: Wording = TRAINING
) -> list[tuple[str, Fact]]:
    """Ask `count` questions of different kinds, drawn by how often each kind is asked."""
    left = {kind: weight for kind, (weight, _) in KINDS.items()}
    drawn: list[tuple[str, Fact]] = []
    while left and len(drawn) < count:
        kind = rng.choices(tuple(left), tuple(left.values()))[0]
        del left[kind]
        pair = phrased(scene, kind, rng, wording)
        drawn += [] if pair is None else [pair]
    return drawn


def typed(text: str, rng: random.Random, wording: Wording = TRAINING) -> str:
    """Return a question as people type it: politely or not, in American or British spelling, and in haste."""
    mark = "" if text.endswith(".") else "?"
    body = text.removesuffix(".")
    if rng.random() < 0.1:
        body += f" {chosen(rng.choice(wording.endings), rng)}"
    if rng.random() < 0.1:
        opening = chosen(rng.choice(wording.openings), rng)
        body = f"{opening}{rng.choice((' ', ', ')) if opening[-1].isalpha() else ' '}{body}"
    if rng.random() < 0.3:
        body = body.replace("color", "colour").replace("gray", "grey").replace("center", "centre")
    if rng.random() < 0.25:
        short = rng.choice(("'s", "'s", "s"))
        for start in ("what is ", "where is "):
            if body.startswith(start):
                body = body.replace(start, f"{start.split(' ')[0]}{short} ", 1)
    if rng.random() < 0.03:
        body = mistyped(body, rng)
    if rng.random() < 0.6:
        body = body[0].upper() + body[1:]
    return body if rng.random() < 0.3 else body + (mark or ".")


def mistyped(text: str, rng: random.Random) -> str:
    """Swap, drop or double a letter inside a word of small letters."""
    typed_words = text.split(" ")
    long = [index for index, word in enumerate(typed_words) if len(word) > 4 and word.isalpha() and word.islower()]
    if not long:
        return text
    index = rng.choice(long)
    word, at = typed_words[index], rng.randrange(1, len(typed_words[index]) - 2)
    typed_words[index] = rng.choice((
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    ))  # fmt: skip
    return " ".join(typed_words)


def located(
    scene: VariedScene, rng: random.Random, single: bool, wording: Wording = TRAINING
) -> tuple[str, list[Thing]] | None:
    """Return a phrase as people give it to detect and segment, and the things that it means from left to right.

    single: the phrase means one thing. None where there is no such phrase.
    """
    phraser = Phraser(scene, rng, wording)
    if single or rng.random() < 0.5:
        chosen_thing = phraser.referable()
        if chosen_thing is None:
            return None
        thing, text = chosen_thing
        return text if rng.random() < 0.3 else text.removeprefix("the "), [thing]
    if rng.random() < 0.2:
        return phraser.pick(wording.phrases).format(things=phraser.noun(many=True)), list(scene.things)
    traits = phraser.attributes(rng.choice(scene.things))
    things = phraser.matching(traits)
    if len(things) == 1 or rng.random() < 0.3:  # people also name what they look for in the singular
        return phraser.named(traits), things
    return phraser.pick(wording.phrases).format(things=phraser.named(traits, many=True)), things


def missing(scene: VariedScene, rng: random.Random, wording: Wording = TRAINING) -> str:
    """Return a phrase, as for detect, that means nothing there: another thing, or one that differs in an attribute."""
    phraser = Phraser(scene, rng, wording)
    for _ in range(5 * (rng.random() < 0.5)):
        traits = phraser.some()
        if not phraser.matching(traits):
            return phraser.named(traits)
    return phraser.stranger()


def texts(wording: Wording = TRAINING) -> Iterator[str]:
    """Yield every text of a wording, alternatives written out, with its slots."""
    listed = [
        *(text for some in wording.templates.values() for text in some),
        *(text for table in (wording.references, wording.extremes, wording.relations, wording.places)
          for some in table.values() for text in some),
        *wording.nouns,
        *wording.nouns.values(),
        *wording.openings, *wording.endings, *wording.phrases, *wording.written,
        *(other for some in wording.synonyms.values() for other in some),
    ]  # fmt: skip
    for text in listed:
        yield from expansions(text)


def slot_names() -> list[str]:
    """Return every name that may stand in a slot or an answer, with its plural."""
    single = [*COLOR_NAMES, *SHAPE_NAMES, *STYLE_OTHERS, *(other for some in STYLE_OTHERS.values() for other in some)]
    return [*single, *map(plural_name, SHAPE_NAMES), *NOUNS, *NOUNS.values()]
