"""English phrases in the plural and back: `red bus` and `red buses`."""

from collections.abc import Callable

_IRREGULAR = dict(
    pair.split(":")
    for pair in "person:people man:men woman:women child:children foot:feet tooth:teeth goose:geese mouse:mice "
    "sheep:sheep fish:fish deer:deer aircraft:aircraft knife:knives leaf:leaves shelf:shelves wolf:wolves "
    "bus:buses gas:gases lens:lenses shoe:shoes toe:toes canoe:canoes axe:axes ax:axes "
    "tomato:tomatoes potato:potatoes hero:heroes mango:mangoes volcano:volcanoes mosquito:mosquitoes oboe:oboes "
    "movie:movies cookie:cookies selfie:selfies brownie:brownies pie:pies tie:ties zombie:zombies hoodie:hoodies "
    "magpie:magpies necktie:neckties smoothie:smoothies calorie:calories loaf:loaves calf:calves half:halves "
    "scarf:scarves thief:thieves elf:elves wife:wives life:lives hoof:hooves dwarf:dwarves ox:oxen cactus:cacti "
    "series:series species:species headache:headaches cache:caches moustache:moustaches mustache:mustaches "
    "avalanche:avalanches fuse:fuses cause:causes clause:clauses quiz:quizzes "
    "policeman:policemen policewoman:policewomen fireman:firemen snowman:snowmen fisherman:fishermen "
    "grandchild:grandchildren".split()
)
_SINGULAR = {plural: single for single, plural in _IRREGULAR.items()}
_AFTER = frozenset("with in on at of to by from under over near behind between that which who wearing holding".split())
"""Words that end the name of a thing in a phrase: `person with a hat`."""


def plural_phrase(phrase: str) -> str:
    """Return an English phrase in the plural, good for asking how many: `red bus` -> `red buses`.

    What seems to be a plural stays.
    """
    return _changed(phrase, _plural_word)


def singular_phrase(phrase: str) -> str:
    """Return an English phrase in the singular, good for asking where one is: `red buses` -> `red bus`.

    What seems to be a singular stays, and so do things joined by `and` or `or`.
    """
    if any(word in ("and", "or") for word in phrase.casefold().split()):
        return phrase
    return _changed(phrase, _singular_word)


def _changed(phrase: str, change: Callable[[str], str]) -> str:
    """Return the phrase with the word changed that names its thing."""
    parts = phrase.split()
    end = next((at for at, word in enumerate(parts) if at and word.casefold() in _AFTER), len(parts))
    parts[end - 1] = change(parts[end - 1])
    return " ".join(parts)


def _plural_word(word: str) -> str:
    low = word.casefold()
    if low in _IRREGULAR:
        return word[:1] + _IRREGULAR[low][1:]
    if low in _SINGULAR or (low.endswith("s") and not low.endswith(("ss", "us"))):
        return word
    if low.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    return f"{word[:-1]}ies" if low.endswith("y") and low[-2:-1] not in "aeiou" else f"{word}s"


def _singular_word(word: str) -> str:
    low = word.casefold()
    if low in _SINGULAR:
        return word[:1] + _SINGULAR[low][1:]
    if low in _IRREGULAR or not low.endswith("s") or low.endswith(("ss", "us", "is")):
        return word
    if low.endswith("ies"):
        return f"{word[:-3]}y"
    if low.endswith(("sses", "xes", "zzes", "ches", "shes", "oes")) or (
        low.endswith("uses") and not low.endswith("ouses")
    ):
        return word[:-2]
    return word[:-1]
