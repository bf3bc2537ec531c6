import pytest

from serve.errors import BadRequest
from serve.models import MODELS
from serve.models.base import Model, Turn
from serve.models.turns import marked, ordered

CONVERSING = [model for model in MODELS.values() if "chat" in model.skills and not model.card.toy]


def test_the_system_text_comes_apart() -> None:
    question = Turn("user", "Why?")
    assert ordered([Turn("system", "Be brief."), question]) == ("Be brief.", [question])
    assert ordered([question]) == (None, [question])


@pytest.mark.parametrize(
    "turns, param",
    [
        ([], "messages"),
        ([Turn("user", "a"), Turn("assistant", "b")], "messages"),
        ([Turn("user", "a"), Turn("system", "b"), Turn("user", "c")], "messages[1]"),
        ([Turn("system", "s")], "messages"),
    ],
)
@pytest.mark.parametrize("model", CONVERSING, ids=lambda model: model.name)
def test_what_no_family_takes_is_refused_by_name(model: Model, turns: list[Turn], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        model.converse(turns)
    assert refused.value.param == param


def test_a_picture_stands_before_the_words() -> None:
    assert marked(Turn("user", "Why?", pictured=True)) == "<image>\nWhy?"
    assert marked(Turn("user", "Why?", filmed=True)) == "<video>\nWhy?"
    assert marked(Turn("user", "Why?")) == "Why?"
