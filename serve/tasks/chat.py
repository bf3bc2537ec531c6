"""Chat: a free question about the image, answered in sentences."""

from serve.tasks.base import QUESTION, Instruction, Judging, Task
from serve.tasks.merging.medoid import medoid
from serve.tasks.reply import TextResult, text_of
from serve.tasks.request import JudgeName, Request
from serve.tasks.vqa import Question


class ChatRequest(Request):
    question: Question
    judge: JudgeName = None


class ChatResult(TextResult):
    text: str


def _instruction(request: ChatRequest) -> str:
    return request.question


CHAT = Task(
    name="chat",
    title="Chat",
    known_as=("multimodal-chat",),
    request=ChatRequest,
    result=ChatResult,
    methods={"medoid": medoid()},
    text_field=QUESTION,
    example={"question": "Describe the picture."},
    instruction=Instruction(_instruction, ChatResult.read, max_tokens=1024),
    judging=Judging(_instruction, text_of, ChatResult.of),
)
