"""A whole reply that is written piece by piece, so that no more is held for a slow client than it takes."""

from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 64 * 1024
"""Bytes that are written at once. Where a client does not take them, the server waits with the next."""


class PiecewiseJson(Response):
    """A JSON reply of known length. body: its parts, in order."""

    media_type = "application/json"

    def __init__(self, body: Sequence[bytes]) -> None:
        super().__init__()
        self.parts = body
        self.headers["content-length"] = str(sum(map(len, body)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pieces = [part[at : at + PIECE] for part in self.parts for at in range(0, len(part), PIECE)]
        for left, piece in zip(reversed(range(len(pieces))), pieces, strict=True):
            await send({"type": "http.response.body", "body": piece, "more_body": left > 0})
