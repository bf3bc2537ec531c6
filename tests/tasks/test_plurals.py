import pytest

from serve.tasks.plurals import plural_phrase, singular_phrase

PAIRS = [
    ("circle", "circles"), ("red cross", "red crosses"), ("bus", "buses"), ("box", "boxes"), ("city", "cities"),
    ("boy", "boys"), ("person with a hat", "people with a hat"), ("man in red", "men in red"), ("sheep", "sheep"),
    ("glass", "glasses"), ("house", "houses"), ("horse", "horses"), ("virus", "viruses"), ("cookie", "cookies"),
    ("shoe", "shoes"), ("bench", "benches"), ("vase", "vases"), ("lens", "lenses"), ("Child", "Children"),
    ("loaf of bread", "loaves of bread"), ("red scarf", "red scarves"), ("zombie", "zombies"),
    ("policeman", "policemen"), ("species", "species"), ("headache", "headaches"), ("human", "humans"),
    ("in", "ins"), ("tomato", "tomatoes"), ("potted potato", "potted potatoes"), ("toe", "toes"), ("photo", "photos"),
]  # fmt: skip


@pytest.mark.parametrize(("single", "plural"), PAIRS)
def test_phrase_becomes_the_plural_of_its_thing_and_back(single: str, plural: str) -> None:
    assert (plural_phrase(single), singular_phrase(plural)) == (plural, single)
    assert (plural_phrase(plural), singular_phrase(single)) == (plural, single)


def test_things_joined_by_and_stay_unchanged() -> None:
    assert singular_phrase("cats and dogs") == plural_phrase("cats and dogs") == "cats and dogs"
