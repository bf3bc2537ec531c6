"""Each fault that the load test plants in a model's replies is refused by its name, and a model as it is passes."""

import asyncio

import pytest
from simulated_models import SimulatedModel

from loadtest.planted_faults import FAULTS, PlantedFault, _is_right, cached, planted
from serve.checking.check import CheckAnswer, check
from serve.checking.questions import CheckQuestion, check_questions
from serve.media.image import undecoded_image
from serve.models.contracts import LLAVA, PALIGEMMA, Contract


@pytest.mark.parametrize("own", [LLAVA, PALIGEMMA], ids=lambda contract: contract.name)
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.blind], ids=lambda fault: fault.title)
def test_planted_fault_has_its_expected_name(fault: PlantedFault, own: Contract) -> None:
    ask = planted(fault, SimulatedModel(own).ask(1), own)
    report = asyncio.run(check("m", ["detect", "vqa", "ocr"], ask, contract=fault.declared(own), seed=1))
    assert _is_right(report, fault), report.summary


def test_model_without_the_picture_gets_a_grey_one_of_the_same_size() -> None:
    received: list[CheckQuestion] = []

    async def ask(question: CheckQuestion) -> CheckAnswer:
        received.append(question)
        return CheckAnswer("2", "2")

    question = check_questions("vqa", 1)[0]
    asyncio.run(planted(FAULTS[-1], ask, LLAVA)(question))
    image = undecoded_image(received[0].load())
    assert (image.width, image.height) == question.size and len(set(image.pixels.reshape(-1).tolist())) == 1


def test_same_question_is_sent_once() -> None:
    received: list[CheckQuestion] = []

    async def ask(question: CheckQuestion) -> CheckAnswer:
        received.append(question)
        return CheckAnswer("2", "2")

    async def ask_twice() -> None:
        again = cached(ask)
        first, second, *_ = check_questions("vqa", 1)
        await asyncio.gather(again(first), again(first), again(second))

    asyncio.run(ask_twice())
    assert len(received) == 2
