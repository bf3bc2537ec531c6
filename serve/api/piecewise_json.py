"""Sends a JSON response in pieces, to limit what is buffered for a slow client."""

from collections.abc import Sequence

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

PIECE = 64 * 1024
"""Bytes written at once. The server waits until the client has read them before it takes the next."""


class PiecewiseJson(Response):
    """A JSON response of known length. body: its parts, in order."""

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
