"""Visual question answering: a question about the picture, answered in a word or two."""

from typing import Annotated

from pydantic import Field

from serve.tasks.answers import normalise
from serve.tasks.base import Reply, Request, Result, Task
from serve.tasks.vote import majority

Question = Annotated[str, Field(min_length=1, max_length=4000)]
Language = Annotated[str, Field(pattern=r"^[a-z]{2,3}(-[A-Za-z]{2,4})?$", description="ISO 639 code, such as en.")]


class VqaRequest(Request):
    question: Question
    lang: Language = "en"


class VqaResult(Result):
    answer: str


def _key(reply: Reply) -> str:
    assert isinstance(reply.result, VqaResult)
    return normalise(reply.result.answer)


def _words(result: VqaResult) -> str:
    return result.answer


VQA = Task(
    name="vqa",
    title="Question answering",
    request=VqaRequest,
    result=VqaResult,
    methods={"vote": majority(_key), "weighted_vote": majority(_key, by_confidence=True)},
    words=_words,
)
