"""OpenAI's messages as turns with at most one image."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve.chat_completions.request import ImagePart, Message, TextPart
from serve.errors import BadRequest
from serve.image import Image, decode_data_url
from serve.models.base import Turn

ROLES = {"developer": "system"}  # OpenAI's newer word for the same


@dataclass(frozen=True)
class Conversation:
    """What was said so far, and the one picture it is about. turns[i] is messages[i]."""

    turns: list[Turn]
    image: Image | None

    def question(self) -> tuple[str, str]:
        """The last user message's text and its path in the request. Raises BadRequest where the user said nothing."""
        for at in reversed(range(len(self.turns))):
            if self.turns[at].role == "user":
                return self.turns[at].text.strip(), f"messages[{at}].content"
        raise BadRequest("There is no user message.", param="messages")


def read(messages: Sequence[Message]) -> Conversation:
    """Decodes the image, so call it off the event loop. Raises BadRequest or TooLarge naming the part at fault."""
    turns: list[Turn] = []
    image: Image | None = None
    for at, message in enumerate(messages):
        parts = message.content if isinstance(message.content, list) else []
        pictures = [(f"messages[{at}].content[{i}]", part) for i, part in enumerate(parts) if part.type == "image_url"]
        for path, part in pictures:
            assert isinstance(part, ImagePart)
            if message.role != "user":
                raise BadRequest("Only a user message can hold an image.", param=path)
            if image is not None:
                raise BadRequest("A request is about one image; this is a second one.", param=path)
            url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
            image = decode_data_url(url, f"{path}.image_url")
        turns.append(Turn(ROLES.get(message.role, message.role), _text(message), bool(pictures)))
    return Conversation(turns, image)


def _text(message: Message) -> str:
    """Texts before and after the image are one text: every family puts the image where it was trained to see it."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))
