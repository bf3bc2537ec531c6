"""The language that toys are trained on: how people ask about a picture, kind of fact by kind of fact.

`[a|b|]` is said in one of these ways, {thing} is filled in by facts.py. A template is a question, and gets its question
mark (or none) when it is typed; one that ends in a full stop is a request.
"""

import random
from collections.abc import Iterator

from serve.toy.varied.facts import KINDS, Fact, Phraser, Wording, expansions
from serve.toy.varied.names import COLOR_NAMES, NOUNS, SHAPE_NAMES, STYLE_OTHERS, plural_name
from serve.toy.varied.scenes import Thing, VariedScene

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color_of": (
        "what color is {thing}",
        "[what|which] color does {thing} have",
        "what is the color of {thing}",
        "[which|what] color [has|was used for] {thing}",
        "{thing} is [what|which] color",
        "color of {thing}",
        "[tell me|name|say] the color of {thing}.",
        "in [what|which] color is {thing} [drawn|painted|]",
    ),
    "shape_of": (
        "what shape is {thing}",
        "[what|which] shape does {thing} have",
        "what is the shape of {thing}",
        "what is {thing}",
        "what [kind|type|sort] of [shape|figure|thing] is {thing}",
        "{thing} is [what|which] shape",
        "[tell me|name|say] the shape of {thing}.",
        "shape of {thing}",
    ),
    "style_of": (
        "is {thing} [filled or outlined|solid or hollow|outlined or filled|filled or empty|hollow or solid]",
        "[tell me whether|say if] {thing} is filled or [outlined|empty].",
    ),
    "attributes_of": (
        "what [color and shape|shape and color] is {thing}",
        "what are the [color and shape|shape and color] of {thing}",
        "describe {thing}.",
        "[give|name|tell me] the [shape and color|color and shape] of {thing}.",
    ),
    "extreme": (
        "[what|which] is {thing}",
        "what is {thing} [here|in the picture]",
        "what do you see as {thing}",
        "name {thing}.",
    ),
    "count_all": (
        "how many {things} are there [in total|in all|]",
        "how many {things} [do you see|can you see|can you count|are in the picture|are shown|are in this image]",
        "[count|count all] the {things}.",
        "what is the number of {things}",
        "[number|total number] of {things}",
        "how many {things}",
    ),
    "count": (
        "how many {things} are there",
        "how many {things} [do you see|can you see|are in the picture|are in the image|are shown]",
        "count the {things}.",
        "what is the number of {things}",
        "number of {things}",
        "how many {things}",
        "how many of them are {things}",
    ),
    "count_other": (
        "how many {things} are not {other}",
        "how many {things} [aren't|are other than] {other}",
        "count the {things} that are not {other}.",
    ),
    "count_colors": (
        "how many [different|] colors do the {things} have",
        "how many [different|distinct] colors of {things} are there",
        "in how many colors are the {things} [drawn|painted]",
    ),
    "count_kinds": (
        "how many [different|distinct] shapes are there",
        "how many [kinds|types|sorts] of shapes [are there|do you see]",
    ),
    "is_count": (
        "{be} {number}",
        "{be} exactly {number} [in the picture|]",
        "do you see [exactly|] {number}",
    ),
    "more": (
        "are there more {first} than {second}",
        "do you see more {first} than {second}",
        "is the number of {first} [larger|higher|greater] than the number of {second}",
    ),
    "which_more": (
        "are there more {first} or [more|] {second}",
        "which are there more of, {first} or {second}",
        "what do you see more of, {first} or {second}",
    ),
    "exists": (
        "is there {thing}",
        "is there {thing} [in the picture|in the image|here|in this picture]",
        "do you see {thing}",
        "can you see {thing}",
        "can {thing} be seen",
        "isn't there {thing}",
        "does the [picture|image] [have|contain|show] {thing}",
        "{thing} [in the picture|here|]",
    ),
    "exists_any": (
        "are there [any|] {things} [in the picture|here|]",
        "do you see any {things}",
        "can you see [any|] {things}",
        "does [the image|this picture] [have|contain|show] any {things}",
        "aren't there any {things}",
        "any {things}",
    ),
    "exists_no": (
        "is there no {thing}",
        "are there no {things}",
        "is the [picture|image] without {things}",
        "is it true that there is no {thing}",
        "is there not a single {thing}",
        "is {thing} missing",
        "are {things} [missing|absent]",
    ),
    "exists_both": (
        "is there {first} and {second} [in the picture|]",
        "are there {first} and {second}",
        "do you see both {first} and {second}",
        "does the [picture|image] [have|show] {first} and {second}",
    ),
    "exists_beside": (
        "is there {other} {relation} {thing}",
        "do you see {other} {relation} {thing}",
        "is {other} {relation} {thing}",
    ),
    "absent": (
        "is there {thing}",
        "are there any {things} [in the picture|]",
        "do you see [{thing}|any {things}]",
        "can you see {thing}",
        "does the image [show|contain] {thing}",
        "is {thing} in [the|this] picture",
        "any {things} [here|]",
    ),
    "absent_count": (
        "how many {things} are there",
        "how many {things} [do you see|can you see|are in the picture]",
        "count the {things}.",
        "how many {things}",
    ),
    "absent_what": (
        "what color is {thing}",
        "what is {thing} doing",
        "where is {thing}",
        "what does {thing} look like",
        "what is {relation} {thing}",
        "how big is {thing}",
        "is {thing} [big|small|happy|moving|nice]",
        "what is {thing} [holding|wearing|called|made of]",
    ),
    "is_color": (
        "is {thing} {color}",
        "is the color of {thing} {color}",
        "is {thing} [drawn|painted] in {color}",
        "is it true that {thing} is {color}",
        "isn't {thing} {color}",
        "would you say {thing} is {color}",
    ),
    "is_not_color": (
        "is {thing} not {color}",
        "is it true that {thing} is not {color}",
        "is {thing} [some other color than|any color but] {color}",
    ),
    "is_kind": (
        "is {thing} {kind}",
        "is it true that {thing} is {kind}",
        "does {thing} look like {kind}",
        "isn't {thing} {kind}",
        "is the shape of {thing} {kind}",
    ),
    "is_style": (
        "is {thing} {style}",
        "is it true that {thing} is {style}",
        "does {thing} look {style}",
    ),
    "either_color": (
        "is {thing} {first} or {second}",
        "what color is {thing}, {first} or {second}",
        "is the color of {thing} {first} or {second}",
    ),
    "either_kind": (
        "is {thing} {first} or {second}",
        "what is {thing}, {first} or {second}",
        "does {thing} look like {first} or {second}",
    ),
    "all_same": (
        "are all [the|] {things} {value}",
        "are [all of the|the] {things} all {value}",
        "is it true that all {things} are {value}",
    ),
    "same_color": (
        "are {first} and {second} the same color",
        "do {first} and {second} have the same color",
        "is {first} the same color as {second}",
        "does {first} have the same color as {second}",
    ),
    "same_kind": (
        "are {first} and {second} the same shape",
        "do {first} and {second} have the same shape",
        "is {first} the same shape as {second}",
    ),
    "which_bigger": (
        "[which|what] is [bigger|larger], {first} or {second}",
        "[which one|which of the two] is [bigger|larger]: {first} or {second}",
        "is {first} or {second} [bigger|larger]",
        "which has more area, {first} or {second}",
    ),
    "which_smaller": (
        "[which|what] is smaller, {first} or {second}",
        "[which one|which of the two] is [smaller|tinier]: {first} or {second}",
        "is {first} or {second} smaller",
    ),
    "is_bigger": (
        "is {first} [bigger|larger] than {second}",
        "does {first} look [bigger|larger] than {second}",
        "is {first} the bigger one, compared with {second}",
    ),
    "is_smaller": (
        "is {first} smaller than {second}",
        "does {first} look smaller than {second}",
    ),
    "size_of": (
        "how [big|large] is {thing}",
        "is {thing} [big or small|small or big|small, medium or big|large or small]",
        "what size is {thing}",
    ),
    "where": (
        "where is {thing}",
        "where [do you see|can I find|can you see] {thing}",
        "where [in the picture|in the image] is {thing}",
        "in which [part|corner] of the picture is {thing}",
        "[what|which] is the [place|position|location] of {thing}",
        "{thing} is where",
        "[tell me|say] where {thing} is.",
    ),
    "where_written": (
        "where is {text}",
        "where [do you see|can I find] {text}",
        "in which part of the picture is {text} [written|]",
        "where is {text} [written|printed]",
    ),
    "side": (
        "is {first} {relation} {second}",
        "do you see {first} {relation} {second}",
        "is it true that {first} is {relation} {second}",
        "does {first} [lie|sit|stand] {relation} {second}",
    ),
    "which_side": (
        "is {first} {sides} {second}",
        "does {first} [lie|sit] {sides} {second}",
    ),
    "beside": (
        "[what|which shape] is {relation} {thing}",
        "what [do you see|can you see] {relation} {thing}",
        "what is there {relation} {thing}",
        "[which|what] [thing|object] is {relation} {thing}",
        "name what is {relation} {thing}.",
    ),
    "nearest": (
        "what is [next to|closest to|nearest to|beside|near] {thing}",
        "[which shape|which one] is [next to|closest to|nearest to] {thing}",
        "what do you see next to {thing}",
    ),
    "between": (
        "what is between {first} and {second}",
        "[which shape|which thing] is between {first} and {second}",
        "what do you see between {first} and {second}",
        "what is in the middle between {first} and {second}",
    ),
    "place": (
        "what is {place}",
        "[which shape|what shape] is {place}",
        "what [do you see|can you see] {place}",
        "what is there {place}",
        "is there anything {place}, and what",
    ),
    "background": (
        "what color is the background",
        "[what|which] color does the background have",
        "what is the color of the background",
        "what is the background [color|]",
        "background color",
        "on [what|which] color are the shapes drawn",
        "what is the ground behind the shapes",
    ),
    "is_background": (
        "is the background {color}",
        "does [the picture|the image] have a {color} background",
        "is there a {color} background",
    ),
    "texture": (
        "is the background plain, graded or noisy",
        "what [kind|type] of background [is it|is there]",
        "what does the background look like: plain, graded or noisy",
    ),
    "read": (
        "what does it say",
        "what is written [here|in the picture|in the image|there|]",
        "what [word|text|number] is [written|shown|this]",
        "[what|which] text do you see",
        "what does the [text|picture|word|sign] say",
        "[read|read out] the [text|word|number].",
        "what can you read",
        "can you read the [text|word|number]",
    ),
    "has_text": (
        "is there [any|] text [in the picture|]",
        "is anything written [here|]",
        "do you see [a word or a number|any text|any writing]",
        "does the picture [have|contain] [any|] text",
        "can you read anything",
    ),
    "is_written": (
        "does it say {word}",
        "is the word {word} written [here|in the picture|]",
        "does the [text|picture] say {word}",
        "can you read {word} [here|]",
    ),
    "word_or_number": (
        "is it a word or a number",
        "is [the text|what is written] a word or a number",
        "do you see a word or a number",
    ),
    "color_written": (
        "what color is {text}",
        "in [what|which] color is {text} [written|printed|]",
        "what is the color of {text}",
    ),
    "everything": (
        "what do you see [here|in the picture|in this image|]",
        "what is this",
        "what is in [the picture|this picture|the image|this image]",
        "what is [shown|drawn|there|here]",
        "describe [the|this] [picture|image].",
        "[list|name] all [shapes|objects|things].",
        "what [shapes and colors|colored shapes] do you see",
        "what can you see",
        "tell me about [the|this] [picture|image].",
        "what is it",
    ),
    "kinds": (
        "[what|which] shapes [are there|do you see|are shown]",
        "what kinds of shapes [are there|do you see]",
        "[list|name] the shapes, without colors.",
    ),
    "colors": (
        "[what|which] colors [are|do] the {things} [have|]",
        "what colors do you see [on the {things}|in the {things}]",
        "[list|name] the colors of the {things}.",
        "which colors were used for the {things}",
    ),
    "kinds_of_color": (
        "[what|which] {things} are {color}",
        "[what|which] {things} have the color {color}",
        "[list|name] the {color} {things}.",
    ),
    "colors_of_kind": (
        "what colors are the {things}",
        "which colors do the {things} have",
        "name the colors of the {things}.",
    ),
    "medium": (
        "is this {medium}",
        "is it {medium}",
        "is the picture {medium}",
        "am I looking at {medium}",
    ),
}  # fmt: skip

TRAINING = Wording(
    templates=TEMPLATES,
    nouns={"shape": "shapes", "thing": "things", "object": "objects", "figure": "figures", "item": "items"},
    references={
        "kind": ("{kind}",),
        "color": ("{color} one", "{color} {noun}"),
        "color kind": ("{color} {kind}",),
        "style": ("{style} one", "{style} {noun}"),
        "style kind": ("{style} {kind}",),
        "style color": ("{style} {color} one", "{style} {color} {noun}"),
        "style color kind": ("{style} {color} {kind}",),
    },
    extremes={
        "left": ("leftmost {noun}", "{noun} [furthest|farthest] to the left", "{noun} on the far left"),
        "right": ("rightmost {noun}", "{noun} [furthest|farthest] to the right", "{noun} on the far right"),
        "top": ("topmost {noun}", "highest {noun}", "{noun} [nearest to|closest to] the top", "{noun} at the very top"),
        "bottom": ("lowest {noun}", "{noun} [nearest to|closest to] the bottom", "{noun} at the very bottom"),
        "biggest": ("biggest {noun}", "largest {noun}", "biggest of the shapes", "biggest one"),
        "smallest": ("smallest {noun}", "tiniest {noun}", "smallest of the shapes", "smallest one"),
    },
    relations={
        "left": ("left of", "to the left of", "on the left of", "on the left side of"),
        "right": ("right of", "to the right of", "on the right of", "on the right side of"),
        "above": ("above", "over", "higher than"),
        "below": ("below", "under", "lower than", "beneath"),
    },
    places={
        "top left": ("in the [top left|upper left] [corner|]", "at the top left", "on the top left"),
        "top right": ("in the [top right|upper right] [corner|]", "at the top right", "on the top right"),
        "bottom left": ("in the [bottom left|lower left] [corner|]", "at the bottom left"),
        "bottom right": ("in the [bottom right|lower right] [corner|]", "at the bottom right"),
        "middle": ("in the [middle|center] [of the picture|of the image|]", "at the center"),
    },
    openings=("please", "please tell me", "hey", "hi", "hello", "so", "tell me", "um", "quick question", "look"),
    endings=("please", "thanks", "in the picture", "in this picture", "in the image", "here", "do you think"),
    phrases=("{things}", "all {things}", "all the {things}", "the {things}", "every one of the {things}"),
    written=("text", "writing"),
)  # fmt: skip


def phrased(scene: VariedScene, kind: str, rng: random.Random, wording: Wording = TRAINING) -> tuple[str, Fact] | None:
    """Ask about a fact of a kind in KINDS: a question as typed, and the fact; None where the scene gives none."""
    phraser = Phraser(scene, rng, wording)
    fact = KINDS[kind][1](phraser)
    if fact is None:
        return None
    return typed(worded(fact, phraser), rng, wording), fact


def worded(fact: Fact, phraser: Phraser) -> str:
    """Return a fact as a question of the wording, in small letters and without its question mark."""
    relation = phraser.pick(phraser.wording.relations[phraser.rng.choice(tuple(phraser.wording.relations))])
    return phraser.pick(phraser.wording.templates[fact.kind]).format(**{"relation": relation, **fact.slots})


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
        body += f" {rng.choice(wording.endings)}"
    if rng.random() < 0.1:
        opening = rng.choice(wording.openings)
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
    words = text.split(" ")
    long = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha() and word.islower()]
    if not long:
        return text
    index = rng.choice(long)
    word, at = words[index], rng.randrange(1, len(words[index]) - 2)
    words[index] = rng.choice((
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
    ))  # fmt: skip
    return " ".join(words)


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


def texts(wording: Wording = TRAINING) -> Iterator[str]:
    """Yield every text of a wording, alternatives written out, with its slots."""
    listed = [
        *(text for some in wording.templates.values() for text in some),
        *(text for table in (wording.references, wording.extremes, wording.relations, wording.places)
          for some in table.values() for text in some),
        *wording.nouns,
        *wording.nouns.values(),
        *wording.openings, *wording.endings, *wording.phrases, *wording.written,
    ]  # fmt: skip
    for text in listed:
        yield from expansions(text)


def slot_names() -> list[str]:
    """Return every name that may stand in a slot or an answer, with its plural."""
    single = [*COLOR_NAMES, *SHAPE_NAMES, *STYLE_OTHERS, *(other for some in STYLE_OTHERS.values() for other in some)]
    return [*single, *map(plural_name, SHAPE_NAMES), *NOUNS, *NOUNS.values()]
