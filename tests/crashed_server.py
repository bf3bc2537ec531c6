"""A StreamServer that ends like a killed process: its connections break without a farewell."""

from serve.transport.server import StreamServer


async def crash(server: StreamServer) -> None:
    server._stopped = True
    for session in list(server.sessions):
        assert session._transport is not None
        session._transport.abort()
    await server.stop()
