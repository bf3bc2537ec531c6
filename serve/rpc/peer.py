"""One end of a connection: messages out, gathered for a turn of the loop, and messages in."""

import asyncio
from typing import Any, cast

from serve.rpc.frames import Reader, encode


class Peer(asyncio.Protocol):
    """What the two ends have in common."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._outbox: list[Any] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is not declared to be one

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        for frame in self._reader.feed(data):
            for message in frame:
                self.hear(message)

    def hear(self, message: Any) -> None:
        """What a message does here."""
        raise NotImplementedError

    def say(self, message: Any) -> None:
        """Send it with whatever else is said before the loop comes round. To a peer that is gone: nothing."""
        if not self._outbox:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outbox.append(message)

    def close(self) -> None:
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _flush(self) -> None:
        frame, self._outbox = self._outbox, []
        if frame and self._transport is not None:
            self._transport.writelines(encode(frame))
