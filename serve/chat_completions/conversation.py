"""OpenAI's messages as turns with at most one image or video."""

from collections.abc import Sequence
from dataclasses import dataclass

from serve import image, video
from serve.chat_completions.request import MAX_TEXT, ImagePart, Message, TextPart, VideoPart
from serve.errors import BadRequest
from serve.image import Image
from serve.models.base import Turn
from serve.tasks.vqa import stripped
from serve.video import Video

ROLES = {"developer": "system"}  # OpenAI's newer word for the same


@dataclass(frozen=True)
class Conversation:
    """What was said so far, and the one picture or film it is about. turns[i] is messages[i].

    shown: the path of the part that holds it.
    """

    turns: list[Turn]
    image: Image | None = None
    video: Video | None = None
    shown: str = "messages"

    def question(self) -> tuple[str, str]:
        """The last user message's text and its path in the request. Raises BadRequest where the user said nothing."""
        for at in reversed(range(len(self.turns))):
            if self.turns[at].role == "user":
                return stripped(self.turns[at].text), f"messages[{at}].content"
        raise BadRequest("There is no user message.", param="messages")


def read(messages: Sequence[Message]) -> Conversation:
    """The image is left unread, or where its URL says. A video is decoded: call it off the event loop.

    Raises BadRequest or TooLarge naming the part.
    """
    turns: list[Turn] = []
    held: tuple[str, Image | Video] | None = None
    for at, message in enumerate(messages):
        own: Image | Video | None = None
        for i, part in enumerate(message.content if isinstance(message.content, list) else []):
            if isinstance(part, TextPart):
                continue
            path = f"messages[{at}].content[{i}]"
            kind = "image" if isinstance(part, ImagePart) else "video"
            if message.role != "user":
                raise BadRequest(f"Only a user message can hold {'an' if kind == 'image' else 'a'} {kind}.", param=path)
            if held is not None:
                raise BadRequest("A request is about one image or one video; this is a second one.", param=path)
            own = _decoded(part, path)
            held = path, own
        role = ROLES.get(message.role, message.role)
        turns.append(Turn(role, _text(message), isinstance(own, Image), isinstance(own, Video)))
    if sum(len(turn.text) for turn in turns) > MAX_TEXT:
        said = f"The messages have more than {MAX_TEXT:,} characters together."
        raise BadRequest(said, param="messages", code="context_length_exceeded")
    if held is None:
        return Conversation(turns)
    path, medium = held
    return (
        Conversation(turns, medium, None, path)
        if isinstance(medium, Image)
        else Conversation(turns, None, medium, path)
    )


def _decoded(part: ImagePart | VideoPart, path: str) -> Image | Video:
    if isinstance(part, ImagePart):
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        return image.from_url(url, f"{path}.image_url")
    url = part.video_url if isinstance(part.video_url, str) else part.video_url.url
    return video.decode_data_url(url, f"{path}.video_url")


def _text(message: Message) -> str:
    """Texts before and after the image are one text: every family puts the image where it was trained to see it."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))
