from typing import Any

import pytest
from pydantic import ValidationError
from served import calling, picture, served

from serve.engines.fake import FakeEngine
from serve.media.image import Image
from serve.tasks import TASKS
from serve.tasks.vqa import stripped

ROUND = ["\n", "\r\n", " \t", "\u00a0", "\u2028\u2029", "\u3000", "\u200b", "\ufeff", "\u2060\n\u200d "]


@pytest.mark.parametrize("task", ["vqa", "chat"])
@pytest.mark.parametrize("blank", ROUND)
def test_blanks_around_a_question_are_removed(task: str, blank: str) -> None:
    kind: Any = TASKS[task].request
    image = Image.__new__(Image)
    for text in (f"what is\nit?{blank}", f"{blank}what is\nit?", f"{blank}what is\nit?{blank}"):
        assert kind.model_validate({"image": image, "question": text}).question == "what is\nit?"
    with pytest.raises(ValidationError, match="words"):
        kind.model_validate({"image": image, "question": blank})


def test_letters_that_join_others_stay_inside() -> None:
    assert stripped(" \U0001f468\u200d\U0001f469 ?\u200b") == "\U0001f468\u200d\U0001f469 ?"


@pytest.mark.parametrize("blank", ["\v", "\u2003\u2003", "\u200b \u200b"])
async def test_both_doors_and_forms_refuse_blanks_and_hear_the_same(blank: str) -> None:
    paligemma = FakeEngine("red")
    model = "toy-paligemma"
    async with calling(served(None, paligemma)) as client:
        files = {"image": picture()}
        for question, status in ((blank, 400), (f"what?{blank}", 200)):
            form = await client.post("/v1/tasks/vqa", data={"question": question, "models": model}, files=files)
            assert form.status_code == status, form.text
            if status == 400:
                assert form.json()["error"]["param"] == "question"
            else:
                assert paligemma.prompts[-1].text == "answer en what?"
