"""Chat: a free question about the picture, answered in sentences."""

from serve.tasks.base import JudgeName, Judging, Reply, Request, Result, Task
from serve.tasks.medoid import medoid
from serve.tasks.vqa import Question


class ChatRequest(Request):
    question: Question
    judge: JudgeName = None

    def texts(self) -> tuple[str, ...]:
        return (self.question,)


class ChatResult(Result):
    text: str


def _asked(request: ChatRequest) -> str:
    return request.question


def _text(reply: Reply) -> str:
    assert isinstance(reply.result, ChatResult)
    return reply.result.text


def _result(text: str) -> ChatResult:
    return ChatResult(text=text)


def _words(result: ChatResult) -> str:
    return result.text


CHAT = Task(
    name="chat",
    title="Chat",
    request=ChatRequest,
    result=ChatResult,
    methods={"medoid": medoid(_text)},
    words=_words,
    judging=Judging(_asked, _text, _result),
)
