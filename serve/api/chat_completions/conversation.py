"""Converts OpenAI's messages to turns with at most one image or video."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from serve.api.chat_completions.messages import (
    AssistantMessage,
    Content,
    ImagePart,
    Message,
    RefusalPart,
    TextPart,
    ToolMessage,
    VideoPart,
)
from serve.api.chat_completions.request import MAX_TEXT
from serve.engines.json_schema import MAX_DEPTH, is_nested_deeper
from serve.errors import BadRequest
from serve.media import image, video
from serve.media.image import Image
from serve.media.video import Video
from serve.models.base import Turn
from serve.tasks.vqa import stripped

ROLES = {"developer": "system"}  # OpenAI's newer name of the role
LONGEST_NAME = 128


@dataclass(frozen=True)
class Conversation:
    """A conversation about at most one image or video. turns[i] is messages[i].

    media_path: path of the image or video in the request. last_question: the last user message's text and its path.
    """

    turns: list[Turn]
    image: Image | None = None
    video: Video | None = None
    media_path: str = "messages"
    last_question: tuple[str, str] | None = None

    def question(self) -> tuple[str, str]:
        """Return the last user message's text and its path in the request. Raises BadRequest where there is none."""
        if self.last_question is None:
            raise BadRequest("There is no user message.", param="messages")
        return self.last_question


@dataclass(frozen=True)
class MediaPart:
    """An image or video in messages[at]. replies: number of assistant messages before it."""

    at: int
    path: str
    part: ImagePart | VideoPart
    replies: int


def read_messages(messages: Sequence[Message]) -> Conversation:
    """Return the conversation about the last image or video; earlier ones are ignored.

    It is not decoded yet, and not fetched where it is a URL. Raises BadRequest or TooLarge naming the part.
    """
    media_part = _last_media_part(messages)
    tools: dict[str, str] = {}
    turns: list[Turn] = []
    question: tuple[str, str] | None = None
    for at, message in enumerate(messages):
        turn = _turn(message, tools)
        if media_part is not None and media_part.at == at:
            still = isinstance(media_part.part, ImagePart)
            turn = replace(turn, has_image=still, has_video=not still)
        if message.role == "user":
            question = turn.text, f"messages[{at}].content"
        turns.append(turn)
    if sum(len(turn.text) + len(turn.calls) for turn in turns) > MAX_TEXT:
        raise BadRequest(
            f"The messages have more than {MAX_TEXT:,} characters together.",
            param="messages",
            code="context_length_exceeded",
        )
    if media_part is None:
        return Conversation(turns, last_question=question)
    decoded = _decoded(media_part.part, media_part.path)
    image, film = (decoded, None) if isinstance(decoded, Image) else (None, decoded)
    return Conversation(turns, image, film, media_part.path, question)


def _last_media_part(messages: Sequence[Message]) -> MediaPart | None:
    """Return the last image or video. Raises BadRequest for two of them without a reply in between.

    Chat programs send the whole history with each message, so it may contain images of earlier questions.
    """
    last: MediaPart | None = None
    doubled: str | None = None
    replies = 0
    for at, message in enumerate(messages):
        replies += message.role == "assistant"
        for i, part in enumerate(message.content if isinstance(message.content, list) else []):
            if not isinstance(part, ImagePart | VideoPart):
                continue
            path = f"messages[{at}].content[{i}]"
            if message.role != "user":
                kind = "an image" if isinstance(part, ImagePart) else "a video"
                raise BadRequest(f"Only a user message can hold {kind}.", param=path)
            doubled = None if last is None or last.replies != replies else doubled or path
            last = MediaPart(at, path, part, replies)
    if doubled is not None:
        raise BadRequest("A question is about one image or one video; this is a second one.", param=doubled)
    return last


def _turn(message: Message, tools: dict[str, str]) -> Turn:
    """Return the message as a turn. tools: names of called tools by call id; names in this message are added."""
    text = _text(message.content)
    if isinstance(message, AssistantMessage):
        calls: list[Any] = []
        for call in message.tool_calls or []:
            match call:
                case {"id": str(call_id), "function": {"name": str(called), **more}}:
                    tools[call_id] = called[:LONGEST_NAME]
                    function = {"name": called[:LONGEST_NAME], "arguments": _arguments(more.get("arguments"))}
                    calls.append({"id": call_id[:LONGEST_NAME], "type": "function", "function": function})
        return Turn("assistant", text or message.refusal or "", calls=json.dumps(calls) if calls else "")
    if isinstance(message, ToolMessage):
        call_id = message.tool_call_id or ""
        return Turn("tool", text, call=call_id, function=message.name or tools.get(call_id, ""))
    role = ROLES.get(message.role, message.role)
    return Turn(role, stripped(text) if role == "user" else text)


def _arguments(given: Any) -> str:
    """Return a call's arguments as the text of a JSON object; an empty one where they are none, as a model may err, or
    are nested deeper than any schema may be."""
    try:
        value = json.loads(given) if isinstance(given, str) else None
    except (ValueError, RecursionError):
        return "{}"
    return given if isinstance(value, dict) and not is_nested_deeper(value, MAX_DEPTH) else "{}"


def _decoded(part: ImagePart | VideoPart, path: str) -> Image | Video:
    if isinstance(part, ImagePart):
        url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
        return image.image_from_url(url, f"{path}.image_url")
    url = part.video_url if isinstance(part.video_url, str) else part.video_url.url
    return video.video_from_url(url, f"{path}.video_url")


def _text(content: Content | None) -> str:
    """Return the texts before and after the image as one: each family puts the image where it expects it."""
    if not isinstance(content, list):
        return content or ""
    texts = (part.text if isinstance(part, TextPart) else part.refusal if isinstance(part, RefusalPart) else None
             for part in content)  # fmt: skip
    return "\n".join(text for text in texts if text is not None)
