import pytest
from distinct_models import distinct

from serve.errors import BadRequest
from serve.models.base import Model, Turn
from serve.models.turns import split_system, with_marker

CONVERSING = [model for model in distinct() if "chat" in model.skills and not model.card.toy]


def test_system_text_is_split_off() -> None:
    question = Turn("user", "Why?")
    assert split_system([Turn("system", "Be brief."), question]) == ("Be brief.", [question])
    assert split_system([question]) == (None, [question])


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
def test_bad_order_is_refused_naming_the_message(model: Model, turns: list[Turn], param: str) -> None:
    with pytest.raises(BadRequest) as error:
        model.converse(turns)
    assert error.value.param == param


def test_media_marker_precedes_the_text() -> None:
    assert with_marker(Turn("user", "Why?", has_image=True)) == "<image>\nWhy?"
    assert with_marker(Turn("user", "Why?", has_video=True)) == "<video>\nWhy?"
    assert with_marker(Turn("user", "Why?")) == "Why?"
