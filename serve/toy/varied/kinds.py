"""Kinds of facts about a varied scene: the pieces of a question, its right answers, and a whole sentence.

A fact is computed from the scene alone. Where the scene leaves the answer open (two things of one size, a place between
left and middle), it is None and nothing is asked.
"""

import itertools
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from serve.toy.varied.facts import (
    NUMBERS,
    OPPOSITES,
    RELATION_AXES,
    Fact,
    Phraser,
    caption_of,
    crosses,
    distance,
    frame_area,
    gap,
    is_larger,
    is_past,
    is_related,
    names_of,
    place_of,
    reaches,
    thing_between,
)
from serve.toy.varied.names import (
    GROUNDS,
    PALETTE,
    SHAPE_OTHERS,
    STYLE_OTHERS,
    WRITTEN,
    enumerated,
    plural_name,
    with_article,
)
from serve.toy.varied.scenes import Thing

Option = TypeVar("Option")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def _located(thing: Thing, where: str) -> str:
    return _sentence(f"{with_article(thing.name)} is {where}")


def _nothing(kind: str, slots: Mapping[str, str], where: str) -> Fact:
    return Fact(kind, slots, ("nothing", "none", "no shape"), f"There is nothing {where}.")


def _yes(kind: str, true: bool, claim: str, denial: str, /, **slots: str) -> Fact:
    """Return a yes/no fact. claim, denial: what is so if the answer is yes, or no."""
    return Fact(kind, slots, ("yes",) if true else ("no",), f"Yes, {claim}." if true else f"No, {denial}.")


def _number(kind: str, number: int, counted: tuple[str, str], /, **slots: str) -> Fact:
    """Return a fact whose answer is a number. counted: what is counted, singular and plural."""
    verb, word = ("is", counted[0]) if number == 1 else ("are", counted[1])
    spelt = (NUMBERS[number],) if number < len(NUMBERS) else ()
    none = ("none",) if number == 0 else ()
    return Fact(kind, slots, (str(number), *spelt, *none), f"There {verb} {number or 'no'} {word}.")


def _evenly(p: Phraser, options: Sequence[Option], true: Callable[[Option], bool]) -> Option:
    """Return an option for which the answer is yes or, as often, no, where there are both. There must be some."""
    by_answer = ([option for option in options if true(option) == answer] for answer in (True, False))
    return p.rng.choice(p.rng.choice([some for some in by_answer if some]))


def _color_of(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("color",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    return Fact("color_of", {"thing": text}, _color_words(thing.color), _sentence(f"{text} is {thing.color}"))


def _color_words(name: str) -> tuple[str, ...]:
    return (name, *PALETTE[name].others)


def _kind_words(name: str) -> tuple[str, ...]:
    return (name, *SHAPE_OTHERS[name])


def _shape_of(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("kind",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    return Fact(
        "shape_of", {"thing": text}, (*_kind_words(thing.kind), *names_of(thing)),
        _sentence(f"{text} is {with_article(thing.kind)}"),
    )  # fmt: skip


def _style_of(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("style",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    return Fact(
        "style_of", {"thing": text}, (thing.style, *STYLE_OTHERS[thing.style]), _sentence(f"{text} is {thing.style}")
    )


def _attributes_of(p: Phraser) -> Fact | None:
    """Ask for colour and shape at once of a thing that is named by where or how big it is."""
    named = p.some_end()
    if named is None:
        return None
    thing, text = named
    return Fact(
        "attributes_of", {"thing": text}, tuple(name for name in names_of(thing) if " " in name),
        _sentence(f"{text} is {with_article(thing.name)}"),
    )  # fmt: skip


def _extreme(p: Phraser) -> Fact | None:
    named = p.some_end()
    if named is None:
        return None
    thing, text = named
    return Fact("extreme", {"thing": text}, names_of(thing), _sentence(f"the {thing.name} is {text}"))


def _count_all(p: Phraser) -> Fact:
    return _number("count_all", len(p.everything()), ("shape", "shapes"), things=p.noun(many=True))


def _traits(p: Phraser) -> dict[str, str]:
    """Return attributes that things may have, half the time such as more than one thing has."""
    traits = p.some()
    several = [some for thing in p.things for some in [p.attributes(thing)] if len(p.matching(some)) > 1]
    return p.rng.choice(several) if several and p.rng.random() < 0.5 else traits


def _count(p: Phraser) -> Fact:
    """Ask for the number of things with some attributes."""
    traits = _traits(p)
    things_named = p.named(traits, many=True)
    return _number("count", len(p.sought(traits)), (_singular_of(traits), things_named), things=things_named)


def _singular_of(attributes: Mapping[str, str]) -> str:
    return " ".join([*attributes.values()] + ([] if "kind" in attributes else ["shape"]))


def _count_other(p: Phraser) -> Fact:
    """Ask how many things do not have an attribute."""
    key = p.rng.choice(("color", "kind"))
    value = getattr(p.rng.choice(p.things), key)
    p.about = tuple(thing for thing in p.things if getattr(thing, key) != value)
    number = len(p.about)
    word = p.color(value) if key == "color" else plural_name(p.kind(value))
    verb = "is" if number == 1 else "are"
    fact = _number("count_other", number, ("", ""), things=p.noun(many=True), other=word)
    return Fact(fact.kind, fact.slots, fact.answers, f"{number} {verb} not {word}.")


def _count_colors(p: Phraser) -> Fact:
    colors = {thing.color for thing in p.everything()}
    return _number("count_colors", len(colors), ("color", "colors"), things=p.noun(many=True))


def _count_kinds(p: Phraser) -> Fact:
    kinds = {thing.kind for thing in p.everything()}
    return _number("count_kinds", len(kinds), ("kind of shape", "kinds of shapes"))


def _is_count(p: Phraser) -> Fact:
    traits = p.attributes(p.rng.choice(p.things))
    true = len(p.sought(traits))
    number = true + p.rng.choice((0, 0, 1, 1, 2))
    word, many = p.named(traits), p.named(traits, many=True)
    text = f"{p.rng.choice((str(number), NUMBERS[number]))} {many if number != 1 else word}"
    verb = "is" if true == 1 else "are"
    return _yes(
        "is_count", number == true, f"there {verb} {true}", f"there {verb} {true}",
        be="is there" if number == 1 else "are there", number=text,
    )  # fmt: skip


LIMITS: Mapping[str, Callable[[int, int], bool]] = {
    "more than": operator.gt, "over": operator.gt, "fewer than": operator.lt, "less than": operator.lt,
    "under": operator.lt, "at least": operator.ge, "at most": operator.le,
}  # fmt: skip


def _is_over(p: Phraser) -> Fact:
    """Ask whether there are more or fewer things than a number, which is near to the true one."""
    if p.rng.random() < 0.2:
        things, true = p.noun(many=True), len(p.everything())
    else:
        traits = _traits(p)
        things, true = p.named(traits, many=True), len(p.sought(traits))
    numbers = range(max(2, true - 2), min(true + 2, len(NUMBERS) - 1) + 1)
    amounts = list(itertools.product(LIMITS, numbers))
    limit, number = _evenly(p, amounts, lambda amount: LIMITS[amount[0]](true, amount[1]))
    claim = f"there {'is' if true == 1 else 'are'} {true or 'none'}"
    holds = LIMITS[limit](true, number)
    return _yes("is_over", holds, claim, claim, amount=f"{limit} {NUMBERS[number]}", things=things)


def _amounts(p: Phraser) -> tuple[str, list[tuple[str, str]], Mapping[str, int]]:
    """Return `color` or `kind`, pairs of colours or kinds of which one is there, and how many things each has."""
    key = p.rng.choice(("color", "kind"))
    values = list(dict.fromkeys([*(getattr(thing, key) for thing in p.things), p.any(key)]))
    return key, list(itertools.permutations(values, 2)), {value: len(p.matching({key: value})) for value in values}


def _more(p: Phraser) -> Fact | None:
    key, pairs, number = _amounts(p)
    if not pairs:
        return None
    pair = _evenly(p, pairs, lambda pair: number[pair[0]] > number[pair[1]])
    left, right = (number[value] for value in pair)
    a, b = (p.named({key: value}, many=True) for value in pair)
    claim = f"there are {left} {a} and {right} {b}"
    return _yes("more", left > right, claim, claim, first=a, second=b)


def _which_more(p: Phraser) -> Fact | None:
    key, pairs, number = _amounts(p)
    pairs = [(a, b) for a, b in pairs if number[a] != number[b]]
    if not pairs:
        return None
    pair = p.rng.choice(pairs)
    a, b = (p.named({key: value}, many=True) for value in pair)
    best = a if number[pair[0]] > number[pair[1]] else b
    return Fact("which_more", {"first": a, "second": b}, (best,), f"There are more {best}.")


def _exists(p: Phraser) -> Fact:
    traits = p.some()
    text = with_article(p.named(traits))
    return _yes(
        "exists", bool(p.sought(traits)), f"there is {text}", f"there is no {text.split(' ', 1)[1]}", thing=text
    )


def _exists_any(p: Phraser) -> Fact:
    traits = p.some()
    text = p.named(traits, many=True)
    return _yes("exists_any", bool(p.sought(traits)), f"there are {text}", f"there are no {text}", things=text)


def _exists_no(p: Phraser) -> Fact:
    """Ask whether something is missing: `is there no red circle?` is yes where there is none."""
    traits = p.some()
    text, things = p.named(traits), p.named(traits, many=True)
    there = bool(p.sought(traits))
    if p.rng.random() < 0.2:
        text, there, p.about = p.stranger(), False, ()
        things = plural_name(text)
    return _yes("exists_no", not there, f"there is no {text}", f"there is {with_article(text)}",
                thing=text, things=things)  # fmt: skip


def _exists_both(p: Phraser) -> Fact | None:
    first, second = p.some(), p.some()
    if first == second:
        return None
    a, b = (with_article(p.named(traits)) for traits in (first, second))
    missing = [text for text, traits in ((a, first), (b, second)) if not p.matching(traits)]
    denial = "there is no " + " and no ".join(text.split(" ", 1)[1] for text in missing)
    return _yes("exists_both", not missing, f"there is {a} and {b}", denial, first=a, second=b)


def _exists_beside(p: Phraser) -> Fact | None:
    """Ask whether there is a thing of a kind on one side of another."""
    chosen_thing = p.referable()
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    relation = p.rng.choice(tuple(RELATION_AXES))
    there = [other for other in p.things if other != thing and is_related(other, thing, relation)]
    traits = p.attributes(p.rng.choice(there)) if there and p.rng.random() < 0.4 else p.some()
    clear = [is_related(other, thing, relation) for other in p.matching(traits) if other != thing]
    if None in clear:
        return None
    side = p.pick(p.wording.relations[relation])
    named = p.named(traits)
    return _yes(
        "exists_beside", any(clear), f"there is {with_article(named)} {side} {text}",
        f"there is no {named} {side} {text}",
        other=with_article(named), relation=side, thing=text,
    )  # fmt: skip


def _absent(p: Phraser) -> Fact:
    noun = p.stranger()
    return _yes("absent", False, "", f"there is no {noun}", thing=with_article(noun), things=plural_name(noun))


def _absent_count(p: Phraser) -> Fact:
    noun = p.stranger()
    return _number("absent_count", 0, (noun, plural_name(noun)), things=plural_name(noun))


def _absent_what(p: Phraser) -> Fact:
    """Ask about a thing that is not there as if it were; the right answer says so."""
    noun = p.stranger()
    if p.rng.random() < 0.3:
        kinds = [kind for kind in SHAPE_OTHERS if not p.matching({"kind": kind})]
        noun = p.kind(p.rng.choice(kinds))
    return Fact(
        "absent_what", {"thing": f"the {noun}"},
        (f"there is no {noun}", f"no {noun}", "nothing", "none", "there is none", "there isn't one"),
        f"There is no {noun} in the picture.",
    )  # fmt: skip


def _is_color(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("color",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    value = thing.color if p.rng.random() < 0.5 else p.any("color")
    word = p.color(value)
    return _yes(
        "is_color", value == thing.color, f"{text} is {word}", f"{text} is {thing.color}", thing=text, color=word
    )


def _is_not_color(p: Phraser) -> Fact | None:
    fact = _is_color(p)
    if fact is None:
        return None
    true = fact.answers == ("no",)
    claim = fact.sentence.split(", ", 1)[1].rstrip(".")
    return _yes("is_not_color", true, claim, claim, **fact.slots)


def _is_kind(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("kind",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    value = thing.kind if p.rng.random() < 0.5 else p.any("kind")
    word = with_article(p.kind(value))
    return _yes(
        "is_kind", value == thing.kind, f"{text} is {word}", f"{text} is {with_article(thing.kind)}",
        thing=text, kind=word,
    )  # fmt: skip


def _is_style(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("style",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    value = p.any("style")
    word = p.style(value)
    return _yes(
        "is_style", value == thing.style, f"{text} is {word}", f"{text} is {thing.style}", thing=text, style=word
    )


def _either_color(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("color",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    both = [thing.color, p.rng.choice([name for name in PALETTE if name != thing.color])]
    p.rng.shuffle(both)
    return Fact(
        "either_color", {"thing": text, "first": both[0], "second": both[1]}, _color_words(thing.color),
        _sentence(f"{text} is {thing.color}"),
    )  # fmt: skip


def _either_kind(p: Phraser) -> Fact | None:
    chosen_thing = p.referable(("kind",))
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    both = [thing.kind, p.rng.choice([name for name in SHAPE_OTHERS if name != thing.kind])]
    p.rng.shuffle(both)
    return Fact(
        "either_kind", {"thing": text, "first": with_article(both[0]), "second": with_article(both[1])},
        _kind_words(thing.kind), _sentence(f"{text} is {with_article(thing.kind)}"),
    )  # fmt: skip


def _all_same(p: Phraser) -> Fact:
    """Ask whether all things have a colour or are of a kind."""
    key = p.rng.choice(("color", "kind"))
    value = getattr(p.rng.choice(p.things), key)
    word = p.color(value) if key == "color" else plural_name(p.kind(value))
    true = len(p.matching({key: value})) == len(p.everything())
    noun = p.noun(many=True)
    return _yes("all_same", true, f"all {noun} are {word}", f"not all {noun} are {word}", things=noun, value=word)


def _same(p: Phraser, key: str, named: Callable[[str], str] = str) -> Fact | None:
    """Ask whether two things have the same attribute, as often so as not where there are both. named: says it."""
    pairs = list(itertools.combinations(p.references(extremes=False), 2))
    if not pairs:
        return None
    (a, first), (b, second) = _evenly(p, pairs, lambda pair: getattr(pair[0][0], key) == getattr(pair[1][0], key))
    values = getattr(a, key), getattr(b, key)
    claim = f"{first} is {named(values[0])} and {second} is {named(values[1])}"
    return _yes(f"same_{key}", values[0] == values[1], claim, claim, first=first, second=second)


def _same_color(p: Phraser) -> Fact | None:
    return _same(p, "color")


def _same_kind(p: Phraser) -> Fact | None:
    return _same(p, "kind", with_article)


def _same_two(p: Phraser) -> Fact | None:
    """Ask whether the only two things of a kind have one colour."""
    twos = [both for kind in dict.fromkeys(thing.kind for thing in p.things)
            if len(both := p.matching({"kind": kind})) == 2]  # fmt: skip
    if not twos:
        return None
    a, b = _evenly(p, twos, lambda both: both[0].color == both[1].color)
    if a.color != b.color and p.rng.random() < 0.6:  # two things of a kind seldom have one colour
        return None
    kind = {"kind": a.kind}
    p.about = (a, b)
    return _yes("same_two", a.color == b.color, f"both are {a.color}", f"one is {a.color} and the other is {b.color}",
                things=p.named(kind, many=True))  # fmt: skip


def _which_not(p: Phraser) -> Fact | None:
    """Ask for the only thing without an attribute that all others have."""
    lacking = [
        (key, value, other)
        for key in ("color", "kind", "style")
        for value in dict.fromkeys(getattr(thing, key) for thing in p.things)
        for other in [[thing for thing in p.things if getattr(thing, key) != value]]
        if len(other) == 1 and len(p.things) > 2
    ]
    if not lacking:
        return None
    key, value, (thing,) = p.rng.choice(lacking)
    p.about = (thing,)
    word = {"color": p.color, "kind": p.kind, "style": p.style}[key](value)
    name = with_article(word) if key == "kind" else word
    claim = f"the {thing.name} is not {name}"
    return Fact("which_not", {"thing_name": name, "noun": p.noun()}, names_of(thing), _sentence(claim))


def _which_bigger(p: Phraser) -> Fact | None:
    return _compared(p, "which_bigger", larger=True)


def _which_smaller(p: Phraser) -> Fact | None:
    return _compared(p, "which_smaller", larger=False)


def _pair_by_size(p: Phraser) -> tuple[tuple[Thing, str], tuple[Thing, str], bool] | None:
    """Return two things with phrases, and whether the first is the larger; None where that is not clear."""
    both = p.pair()
    if both is None or (first_larger := is_larger(both[0][0], both[1][0])) is None:
        return None
    return *both, first_larger


def _compared(p: Phraser, kind: str, larger: bool) -> Fact | None:
    pair = _pair_by_size(p)
    if pair is None:
        return None
    (a, first), (b, second), first_larger = pair
    thing, text = (a, first) if first_larger == larger else (b, second)
    short = text.removeprefix("the ")
    other = b if thing == a else a
    known = tuple(name for name in names_of(thing) if name not in names_of(other))
    claim = f"{text} is {'bigger' if larger else 'smaller'}"
    return Fact(kind, {"first": first, "second": second}, (short, *known), _sentence(claim))


def _is_bigger(p: Phraser) -> Fact | None:
    return _is_compared(p, "is_bigger", larger=True)


def _is_smaller(p: Phraser) -> Fact | None:
    return _is_compared(p, "is_smaller", larger=False)


def _is_compared(p: Phraser, kind: str, larger: bool) -> Fact | None:
    pair = _pair_by_size(p)
    if pair is None:
        return None
    (_, first), (_, second), bigger = pair
    claim = f"{first} is {'bigger' if bigger else 'smaller'} than {second}"
    return _yes(kind, bigger == larger, claim, claim, first=first, second=second)


def _size_of(p: Phraser) -> Fact | None:
    chosen_thing = p.referable()
    if chosen_thing is None:
        return None
    thing, text = chosen_thing
    side = math.sqrt(frame_area(thing))
    for name, others, least, most in (
        ("small", ("little", "tiny"), 0.0, 0.19), ("medium", ("medium sized",), 0.23, 0.29),
        ("big", ("large",), 0.34, 1.0),
    ):  # fmt: skip
        if least <= side <= most:
            return Fact("size_of", {"thing": text}, (name, *others), _sentence(f"{text} is {name}"))
    return None


def _where(p: Phraser) -> Fact | None:
    chosen_thing = p.referable()
    if chosen_thing is None or (place := place_of(chosen_thing[0].box)) is None:
        return None
    text = chosen_thing[1]
    return Fact("where", {"thing": text}, _place_answers(place), _sentence(f"{text} is {_at(place)}"))


def _place_answers(place: str) -> tuple[str, ...]:
    others = {"middle": ("center", "centre", "in the middle", "in the center"), "top": ("top middle", "top center"),
              "bottom": ("bottom middle", "bottom center"), "left": ("middle left", "left middle", "center left"),
              "right": ("middle right", "right middle", "center right")}  # fmt: skip
    places = (place, *others.get(place, ()), f"{place} corner" if " " in place else place)
    return tuple(
        dict.fromkeys((*places, _at(place), *(f"{at} {word}" for word in places for at in ("at", "in", "on"))))
    )


def _at(place: str) -> str:
    return {"middle": "in the middle", "left": "on the left", "right": "on the right"}.get(place, f"at the {place}")


def _where_written(p: Phraser) -> Fact | None:
    if p.scene.writing is None or (place := place_of(p.scene.writing.box)) is None:
        return None
    text = _written(p)
    return Fact("where_written", {"text": text}, _place_answers(place), _sentence(f"{text} is {_at(place)}"))


def _written(p: Phraser) -> str:
    assert p.scene.writing is not None
    return "the " + p.pick((*p.wording.written, "number" if p.scene.writing.text.isdigit() else "word"))


def _side(p: Phraser) -> Fact | None:
    both = p.pair()
    relation = p.rng.choice(tuple(RELATION_AXES))
    if both is None or (true := is_related(both[0][0], both[1][0], relation)) is None:
        return None
    (_, first), (_, second) = both
    phrase = p.pick(p.wording.relations[relation])
    other = p.pick(p.wording.relations[OPPOSITES[relation]])
    return _yes(
        "side", true, f"{first} is {phrase} {second}", f"{first} is {other} {second}",
        first=first, relation=phrase, second=second,
    )  # fmt: skip


def _which_side(p: Phraser) -> Fact | None:
    """Ask whether a thing is left or right of another, or above or below."""
    both = p.pair()
    relation = p.rng.choice(("left", "above"))
    if both is None or (true := is_related(both[0][0], both[1][0], relation)) is None:
        return None
    (_, first), (_, second) = both
    answer = relation if true else OPPOSITES[relation]
    ways = [
        p.rng.choice(("left or right of", "to the left or right of")),
        p.rng.choice(("above or below", "over or under")),
    ]
    others = {
        "above": ("over", "higher"),
        "below": ("under", "lower"),
        "left": ("to the left",),
        "right": ("to the right",),
    }
    claim = f"{first} is {answer} {'of ' if relation == 'left' else ''}{second}"
    return Fact(
        "which_side", {"first": first, "second": second, "sides": ways[relation == "above"]},
        (answer, *others[answer], f"{answer} of"), _sentence(claim),
    )  # fmt: skip


def _half(p: Phraser) -> Fact | None:
    """Ask in which half of the picture a thing is, upper or lower, left or right."""
    chosen_thing = p.referable()
    axis = p.rng.choice((0, 1))
    if chosen_thing is None or abs(chosen_thing[0].center[axis] - 0.5) < 0.1:
        return None
    thing, text = chosen_thing
    sides = (("left", "right"), ("top", "bottom"))[axis]
    side = sides[thing.center[axis] > 0.5]
    halves = {"left": "left", "right": "right", "top": "upper", "bottom": "lower"}
    first, last = p.rng.sample(sides, 2)
    ways = (f"{_at(first)} or {_at(last)}", f"in the {halves[first]} or the {halves[last]} half")
    names = [f"{name}{end}" for name in (side, halves[side]) for end in ("", " half", " side")]
    answers = (*names, *(f"{at} {name}" for name in names for at in ("at", "in", "on", "to")))
    return Fact("half", {"thing": text, "sides": p.rng.choice(ways)}, answers, _sentence(f"{text} is {_at(side)}"))


def _is_place(p: Phraser) -> Fact | None:
    """Ask whether a thing is in a corner or in the middle."""
    true = p.rng.random() < 0.5
    for thing, text in p.references():
        at = place_of(thing.box)
        others = [spot for spot in p.wording.places if not reaches(thing.box, spot)]
        if at is None or (at not in p.wording.places if true else not others):
            continue
        near = [spot for spot in others if set(spot.split()) & set(at.split())]
        spot = at if true else p.rng.choice(near if near and p.rng.random() < 0.7 else others)
        claim = f"{text} is {_at(at)}"
        return _yes("is_place", true, claim, claim, thing=text, place=p.pick(p.wording.places[spot]))
    return None


def _beside(p: Phraser) -> Fact | None:
    """Ask what is on one side of a thing; any thing there is right, the nearest is trained."""
    for thing, text in p.references():
        clear = {side: there for side in RELATION_AXES if (there := _things_beside(p, thing, side)) is not None}
        if not clear:
            continue
        full = {side: there for side, there in clear.items() if there}
        relation, there = p.rng.choice(list((full if full and p.rng.random() < 0.75 else clear).items()))
        phrase = p.pick(p.wording.relations[relation])
        slots = {"relation": phrase, "thing": text}
        if not there:
            return _nothing("beside", slots, f"{phrase} {text}")
        answers = tuple(name for other in there for name in names_of(other))
        answers += tuple(enumerated([with_article(other.name) for other in some]) for some in (there, there[::-1]))
        return Fact("beside", slots, answers, _located(there[0], f"{phrase} {text}"))
    return None


def _things_beside(p: Phraser, thing: Thing, side: str) -> list[Thing] | None:
    """Return the things on one side of another, the nearest first; None where that is not clear, or text is there."""
    others = {other: is_related(other, thing, side) for other in p.things if other != thing}
    if None in others.values() or (p.scene.writing is not None and is_past(p.scene.writing.box, thing, side)):
        return None
    there = (other for other, clear in others.items() if clear)
    return sorted(there, key=lambda other: math.dist(other.center, thing.center))


def _nearest(p: Phraser) -> Fact | None:
    if len(p.things) < 2:
        return None
    for thing, text in p.references():
        near, *farther = sorted(
            (other for other in p.things if other != thing), key=lambda other: distance(thing, other, p.scene.size)
        )
        away = [distance(thing, other, p.scene.size) for other in farther]
        if p.scene.writing is not None:
            away.append(gap(thing, p.scene.writing.box, p.scene.size))
        if min(away, default=math.inf) > 1.35 * distance(thing, near, p.scene.size):
            return Fact("nearest", {"thing": text}, names_of(near), _located(near, f"next to {text}"))
    return None


def _between(p: Phraser) -> Fact | None:
    """Ask for the only thing between two others: near the middle of the line from one to the other."""
    for (a, first), (b, second) in itertools.permutations(p.references(extremes=False), 2):
        inside = thing_between(p.things, a, b)
        if inside is not None and (p.scene.writing is None or not crosses(p.scene.writing.box, a, b)):
            claim = _located(inside, f"between {first} and {second}")
            return Fact("between", {"first": first, "second": second}, names_of(inside), claim)
    return None


def _place(p: Phraser) -> Fact | None:
    """Ask what is in a corner or in the middle, where at most one thing is and all else clearly is not."""
    spots = [place_of(thing.box) for thing in p.things]
    known = [spot for spot in p.wording.places if spot in spots]
    spot = p.rng.choice(known if known and p.rng.random() < 0.75 else tuple(p.wording.places))
    there = [thing for thing, other in zip(p.things, spots, strict=True) if other == spot]
    unclear = [thing.box for thing, other in zip(p.things, spots, strict=True) if other is None]
    if p.scene.writing is not None:
        unclear.append(p.scene.writing.box)
    if len(there) > 1 or any(reaches(box, spot) for box in unclear):
        return None
    slots = {"place": p.pick(p.wording.places[spot])}
    if not there:
        return _nothing("place", slots, _at(spot))
    return Fact("place", slots, names_of(there[0]), _located(there[0], _at(spot)))


def _background(p: Phraser) -> Fact:
    name = p.scene.background
    shades = tuple(f"{shade} {other}" for shade in ("light", "dark", "pale") for other in _color_words(name))
    return Fact("background", {}, (*_color_words(name), *shades), f"The background is {name}.")


def _is_background(p: Phraser) -> Fact:
    name = p.scene.background
    value = name if p.rng.random() < 0.5 else p.rng.choice(tuple(GROUNDS))
    word = p.color(value)
    claim = f"the background is {name}"
    return _yes("is_background", value == name, claim, claim, color=word)


def _texture(p: Phraser) -> Fact:
    name = p.scene.texture
    others = {"plain": ("uniform",), "graded": ("gradient",), "noisy": ("grainy",)}[name]
    return Fact("texture", {}, (name, *others), f"The background is {name}.")


def _read(p: Phraser) -> Fact:
    if p.scene.writing is None:
        return Fact("read", {}, ("nothing", "no text", "there is no text", "none"), "There is no text.")
    text = p.scene.writing.text
    return Fact("read", {}, (text,), f"It says {text}.")


def _has_text(p: Phraser) -> Fact:
    return _yes("has_text", p.scene.writing is not None, "there is text", "there is no text")


def _is_written(p: Phraser) -> Fact | None:
    if p.scene.writing is None:
        return None
    text = p.scene.writing.text
    other = p.rng.choice(WRITTEN) if not text.isdigit() else str(p.rng.randint(0, 99))
    word = text if p.rng.random() < 0.5 else other
    return _yes("is_written", word.lower() == text.lower(), f"it says {text}", f"it says {text}", word=word)


def _word_or_number(p: Phraser) -> Fact | None:
    if p.scene.writing is None:
        return None
    name = "number" if p.scene.writing.text.isdigit() else "word"
    return Fact("word_or_number", {}, (name,), f"It is a {name}.")


def _color_written(p: Phraser) -> Fact | None:
    if p.scene.writing is None:
        return None
    text, color = _written(p), p.scene.writing.color
    return Fact("color_written", {"text": text}, _color_words(color), _sentence(f"{text} is {color}"))


def _is_color_written(p: Phraser) -> Fact | None:
    if p.scene.writing is None:
        return None
    text, color = _written(p), p.scene.writing.color
    others = [name for name in PALETTE if name != color]
    word = p.color(color if p.rng.random() < 0.5 else p.rng.choice(others))
    true = word in _color_words(color)
    return _yes("is_color_written", true, f"{text} is {word}", f"{text} is {color}", text=text, color=word)


def _letter(p: Phraser) -> Fact | None:
    if p.scene.writing is None or p.scene.writing.text.isdigit():
        return None
    text, end = _written(p), p.rng.choice(("first", "last"))
    letter = p.scene.writing.text[0 if end == "first" else -1].lower()
    return Fact("letter", {"end": end, "text": text}, (letter,), f"The {end} letter of {text} is {letter}.")


def _count_letters(p: Phraser) -> Fact | None:
    if p.scene.writing is None or p.scene.writing.text.isdigit():
        return None
    return _number("count_letters", len(p.scene.writing.text), ("letter", "letters"), text=_written(p))


def _everything(p: Phraser) -> Fact:
    """Ask what is there; the right answer names every thing."""
    claim = caption_of(p.scene)
    return Fact("everything", {}, (claim,), f"I see {claim}.", tuple(thing.name for thing in p.everything()))


def _kinds(p: Phraser) -> Fact:
    names = list(dict.fromkeys(thing.kind for thing in p.everything()))
    return Fact(
        "kinds",
        {"things": p.noun(many=True)},
        (enumerated(names),),
        f"The shapes are {enumerated(names)}.",
        tuple(names),
    )


def _colors(p: Phraser) -> Fact:
    names = list(dict.fromkeys(thing.color for thing in p.everything()))
    return Fact(
        "colors",
        {"things": p.noun(many=True)},
        (enumerated(names),),
        f"The colors are {enumerated(names)}.",
        tuple(names),
    )


def _kinds_of_color(p: Phraser) -> Fact:
    """Ask which shapes have a colour."""
    color = p.rng.choice(p.things).color
    names = list(dict.fromkeys(thing.kind for thing in p.sought({"color": color})))
    return Fact(
        "kinds_of_color", {"things": p.noun(many=True), "color": p.color(color)}, (enumerated(names),),
        f"The {enumerated(names)} {'is' if len(p.matching({'color': color})) == 1 else 'are'} {color}.", tuple(names),
    )  # fmt: skip


def _colors_of_kind(p: Phraser) -> Fact | None:
    several = [thing.kind for thing in p.things if len(p.matching({"kind": thing.kind})) > 1]
    if not several:
        return None
    kind = p.rng.choice(several)
    names = list(dict.fromkeys(thing.color for thing in p.sought({"kind": kind})))
    plural = plural_name(p.kind(kind))
    return Fact(
        "colors_of_kind",
        {"things": plural},
        (enumerated(names),),
        f"The {plural} are {enumerated(names)}.",
        tuple(names),
    )


def _medium(p: Phraser) -> Fact:
    """Ask whether this is a photograph or a drawing."""
    word, true = p.rng.choice(
        (("a photo", False), ("a photograph", False), ("a drawing", True), ("an illustration", True))
    )
    return _yes("medium", true, "it is a drawing", "it is a drawing", medium=word)


KINDS: Mapping[str, tuple[int, Callable[[Phraser], Fact | None]]] = {
    "color_of": (3, _color_of), "shape_of": (7, _shape_of), "style_of": (1, _style_of),
    "attributes_of": (5, _attributes_of), "extreme": (1, _extreme), "count_all": (12, _count_all),
    "count": (9, _count), "count_other": (9, _count_other), "count_colors": (14, _count_colors),
    "count_kinds": (34, _count_kinds), "is_count": (6, _is_count), "is_over": (15, _is_over), "more": (9, _more),
    "which_more": (13, _which_more), "exists": (1, _exists), "exists_any": (2, _exists_any),
    "exists_no": (4, _exists_no), "exists_beside": (9, _exists_beside), "exists_both": (4, _exists_both),
    "absent": (1, _absent), "absent_count": (4, _absent_count), "absent_what": (5, _absent_what),
    "is_color": (7, _is_color), "is_not_color": (10, _is_not_color), "is_kind": (2, _is_kind),
    "is_style": (2, _is_style), "either_color": (5, _either_color), "either_kind": (2, _either_kind),
    "all_same": (9, _all_same), "same_color": (13, _same_color), "same_kind": (20, _same_kind),
    "same_two": (102, _same_two), "which_not": (21, _which_not), "which_bigger": (23, _which_bigger),
    "which_smaller": (23, _which_smaller), "is_bigger": (4, _is_bigger), "is_smaller": (8, _is_smaller),
    "size_of": (4, _size_of), "where": (30, _where), "where_written": (31, _where_written), "half": (2, _half),
    "is_place": (18, _is_place), "side": (12, _side), "which_side": (15, _which_side), "beside": (14, _beside),
    "nearest": (85, _nearest), "between": (38, _between), "place": (23, _place), "background": (4, _background),
    "is_background": (4, _is_background), "texture": (35, _texture), "read": (11, _read), "letter": (102, _letter),
    "count_letters": (28, _count_letters), "has_text": (1, _has_text), "is_written": (45, _is_written),
    "word_or_number": (2, _word_or_number), "color_written": (7, _color_written),
    "is_color_written": (35, _is_color_written), "everything": (8, _everything), "kinds": (34, _kinds),
    "colors": (31, _colors), "kinds_of_color": (25, _kinds_of_color), "colors_of_kind": (78, _colors_of_kind),
    "medium": (1, _medium),
}  # fmt: skip
"""Kinds of facts: how often each is asked in training, and what computes it."""
