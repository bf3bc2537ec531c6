"""Gateways and replicas talk by TLS where Ray does, and only to those whose certificate is of its authority."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.routing import tls
from deployments.routing.replicas import Address, Replicas
from serve.transport.connection import Connection
from serve.transport.server import StreamServer

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
HOST = "127.0.0.1"
BLOCKS = re.findall(r"```sh\n(.*?)```", (Path(__file__).parents[3] / "k8s" / "README.md").read_text(), re.DOTALL)


async def echo(thing: Any) -> AsyncGenerator[Any, None]:
    yield thing


async def no_statuses() -> dict[str, Any]:
    return {}


def with_certificate(monkeypatch: pytest.MonkeyPatch, folder: Path, address: str = HOST) -> None:
    """Set Ray's variables for a certificate that the recipe of k8s/README.md makes."""
    (recipe,) = [block for block in BLOCKS if block.startswith("openssl req -x509")]
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "ADDRESS": address}
    recipe = recipe.replace("DNS:localhost,IP:127.0.0.1,", "")
    done = subprocess.run(["sh", "-ec", recipe], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for variable, value in zip((tls.SWITCH, *tls.FILES), ("1", "tls.crt", "tls.key", "ca.crt"), strict=True):
        monkeypatch.setenv(variable, value if variable == tls.SWITCH else str(folder / value))


@pytest.mark.slow
async def test_large_call_crosses_tls_and_peers_without_the_certificate_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with_certificate(monkeypatch, tmp_path / "ours")
    server = StreamServer({"echo": echo}, no_statuses)
    port = await server.start(HOST, tls.server_context())
    pixels = np.arange(3_000_000, dtype=np.uint8)
    connection = await Connection.open(HOST, port, server.token, tls.client_context())
    try:
        (back,) = [item async for item in connection.stream("echo", pixels)]
        assert np.array_equal(back, pixels)
        monkeypatch.setattr("serve.transport.connection.CONNECT_S", 0.5)
        with pytest.raises(OSError):  # without TLS
            await Connection.open(HOST, port, server.token)
        authority = tmp_path / "ours" / "ca.crt"
        with_certificate(monkeypatch, tmp_path / "theirs")
        with pytest.raises(OSError, match="certificate verify failed"):
            await Connection.open(HOST, port, server.token, tls.client_context())
        monkeypatch.setenv(tls.AUTHORITY, str(authority))  # a stranger that trusts us
        with pytest.raises(OSError, match="may have expired, or be of another authority"):
            await Connection.open(HOST, port, server.token, tls.client_context())
        assert len(server.sessions) == 1
    finally:
        connection.close()
        await server.stop()


async def test_certificate_of_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_certificate(monkeypatch, tmp_path, "127.0.0.2")
    server = StreamServer({}, no_statuses)
    port = await server.start(HOST, tls.server_context())
    with pytest.raises(OSError, match="IP address mismatch"):
        await Connection.open(HOST, port, server.token, tls.client_context())
    await server.stop()


def test_connection_is_plain_without_rays_tls_and_half_a_setting_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tls.SWITCH, raising=False)
    assert tls.server_context() is None and tls.client_context() is None
    monkeypatch.setenv(tls.SWITCH, "1")
    for name in tls.FILES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="RAY_USE_TLS is set, and RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY"):
        tls.client_context()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("untrusted", "another authority"),
        ("missing", "No such file or directory"),
        ("unset", "RAY_USE_TLS is set, and RAY_TLS_CA_CERT is not"),
    ],
)
async def test_gateway_without_a_good_certificate_logs_the_reason(
    broken: str, why: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_certificate(monkeypatch, tmp_path / "ours")
    server = StreamServer({}, no_statuses)
    address = Address(HOST, await server.start(HOST, tls.server_context()), server.token)

    async def find(report: Callable[[Address], None]) -> None:
        report(address)

    async def wake() -> None: ...

    authority = tmp_path / "ours" / "ca.crt"
    with_certificate(monkeypatch, tmp_path / "theirs")
    monkeypatch.setenv(tls.AUTHORITY, str(authority if broken == "untrusted" else tmp_path / "none"))
    if broken == "unset":
        monkeypatch.delenv(tls.AUTHORITY)
    monkeypatch.setattr("deployments.routing.replicas.RETRY_S", 0.01)
    replicas = Replicas(find, wake)
    try:
        assert await replicas.available() == []
        await asyncio.sleep(0.2)
        (record,) = caplog.records
        assert "no connection to the replica at 127.0.0.1: " in record.message and why in record.message
    finally:
        replicas.close()
        await server.stop()
