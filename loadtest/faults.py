"""The faults of `make chaos`, one function each. Its docstring is printed: the fault | what has to hold meanwhile."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import psutil

from loadtest.chaos_server import BROKEN, LATE, MODELS, SMALL, ChaosServer
from loadtest.client import session
from loadtest.ledger import Ledger, percentile
from loadtest.pictures import data_url, pictures
from loadtest.probes import HEALTH, Probes

VICTIM = MODELS[1]
OTHERS = tuple(name for name in MODELS if name != VICTIM)
ESTABLISHED = 1
NEVER = float("inf")


@dataclass
class Row:
    """A fault's numbers. failed: requests beyond those that may fail; times in seconds, None where there are none."""

    requests: int
    failed: int
    hung: int
    met: bool
    detect: float | None = None
    recover: float | None = None
    orphans: int = 0
    note: str = ""


Fault = Callable[[ChaosServer], Awaitable[Row]]


async def killed_replica(server: ChaosServer) -> Row:
    """Kill a model's replica (SIGKILL) | others 0 failed; its own errors within 1 s; back within 5 s"""
    async with server.load() as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(server.process(VICTIM), signal.SIGKILL)
        await asyncio.sleep(10)
    failed = len(ledger.failed(OTHERS))
    detect = ledger.first(at - 1, lambda entry: entry.columns.get(VICTIM, "ok") != "ok")
    slow = [entry for entry in ledger.errors(VICTIM) if entry.seconds > 1.0]
    recover = ledger.recovery(at, lambda entry: entry.columns.get(VICTIM) == "ok")
    met = failed == 0 and not slow and recover <= 5
    return _row(ledger, failed, met, detect=detect and max(0.0, detect - 1), recover=recover)


async def stopped_replica(server: ChaosServer) -> Row:
    """Stop a replica (SIGSTOP) for 30 s, then SIGCONT | others 0 failed; out of rotation within 10 s; no work left"""
    process = server.process(VICTIM)
    async with server.load(6) as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(process, signal.SIGSTOP)
        await asyncio.sleep(30)
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGCONT)
        going = time.monotonic()
        await asyncio.sleep(15)
    failed = len(ledger.failed(OTHERS))
    out = ledger.recovery(at, lambda entry: not (at <= entry.sent < going) or entry.seconds < 1.5)
    recover = ledger.recovery(going, lambda entry: entry.columns.get(VICTIM) == "ok")
    orphans = 0 if await server.quiet(5) < NEVER else server.speaking()
    met = failed == 0 and out <= 10 and orphans == 0 and recover < NEVER
    return _row(ledger, failed, met, detect=out, recover=recover, orphans=orphans)


async def killed_gateway(server: ChaosServer) -> Row:
    """Kill the gateway mid-stream (SIGKILL) | nobody hangs; its work is gone within 5 s; answers again within 5 s"""
    async with server.load() as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(server.process("gateway"), signal.SIGKILL)
        await asyncio.sleep(0.2)
        quiet = await server.quiet(5)
        await asyncio.sleep(10)
    recover = ledger.recovery(at, lambda entry: entry.ok)
    hung = len(ledger.hung())
    cut = sum(not entry.ok for entry in ledger.entries)
    met = not hung and quiet <= 5 and recover <= 5
    orphans = 0 if quiet < NEVER else server.speaking()
    return _row(ledger, 0, met, recover=recover, orphans=orphans, note=f"{cut} cut or refused")


async def killed_controller(server: ChaosServer) -> Row:
    """Kill Serve's controller (SIGKILL) | 0 failed"""
    async with server.load() as ledger:
        await asyncio.sleep(2)
        os.kill(server.process("ServeController"), signal.SIGKILL)
        await asyncio.sleep(13)
    failed = len(ledger.failed(MODELS))
    return _row(ledger, failed, failed == 0)


async def killed_control_store(server: ChaosServer) -> Row:
    """Kill Ray's gcs_server (SIGKILL) | refused or answered, nobody hangs; all is started again within 60 s"""
    async with server.load(6) as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(server.process("gcs_server"), signal.SIGKILL)
        until = at + 60
        while time.monotonic() < until and not _answered(ledger, at + 3):
            await asyncio.sleep(0.5)
        await asyncio.sleep(3)
    recover = ledger.recovery(at, lambda entry: entry.all_ok)
    hung = len(ledger.hung())
    away = sum(not entry.ok for entry in ledger.entries)
    return _row(ledger, 0, not hung and recover <= 60, recover=recover, note=f"{away} cut or refused meanwhile")


def _answered(ledger: Ledger, after: float) -> bool:
    return any(entry.all_ok and entry.sent > after for entry in ledger.entries[-8:])


async def disconnects(server: ChaosServer) -> Row:
    """Disconnect 500 clients at random points | no engine speaks 1 s later; file descriptors and memory go back"""
    gateway = server.process("gateway")
    handles, before = psutil.Process(gateway).num_fds(), server.memory()
    draw = server.random

    async def leave(http: aiohttp.ClientSession) -> None:
        question = server.question(stream=draw.random() < 0.5, deadline_s=30)
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(draw.uniform(0.0, 1.2)):
                async with http.post(f"{server.url}/v1/tasks/vqa", json=question) as reply:
                    await reply.read()

    for _ in range(10):
        async with session() as http:
            await asyncio.gather(*(leave(http) for _ in range(50)))
    quiet = await server.quiet(10)
    await asyncio.sleep(1)
    left = psutil.Process(gateway).num_fds() - handles
    grown = server.memory() / before - 1
    async with server.load() as ledger:
        await asyncio.sleep(3)
    failed = len(ledger.failed(MODELS))
    met = quiet <= 1 and left <= 5 and grown < 0.05 and not failed
    note = f"quiet after {quiet:.1f} s, {left:+} file descriptors, {100 * grown:+.1f}% memory"
    return _row(ledger, failed, met, orphans=server.speaking(), note=note)


async def slow_loris(server: ChaosServer) -> Row:
    """Send 200 heads and 50 bodies without end | closed within 10 and 30 s (+2); the others' p95 at most 1.5 times"""
    normal = await _p95(server)
    heads = [_connect(server, b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: x\r\nx-a: ") for _ in range(200)]
    start = b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    bodies = [_connect(server, start) for _ in range(50)]
    began = time.monotonic()
    async with server.load() as ledger:
        closing = [
            asyncio.to_thread(_count_open, heads, began + 12),
            asyncio.to_thread(_count_open, bodies, began + 33),
        ]
        open_heads, open_bodies = await asyncio.gather(*closing)
    p95 = ledger.percentile(0.95)
    failed = len(ledger.failed(MODELS))
    met = not failed and not open_heads and not open_bodies and p95 <= 1.5 * normal
    note = f"p95 {1000 * normal:.0f} -> {1000 * p95:.0f} ms; left open {open_heads}, {open_bodies}"
    return _row(ledger, failed, met, note=note)


async def slow_readers(server: ChaosServer) -> Row:
    """Ask from 50 clients for 300 KB, in 5 s, and read nothing | the others' p95 at most 1.5 times; left in 35 s"""
    normal = await _p95(server)
    body = json.dumps(server.question(models=["long"], stream=True, deadline_s=60)).encode()
    head = b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    sockets: list[socket.socket] = []
    async with server.load() as ledger:
        for _ in range(50):
            sockets.append(_connect(server, head % len(body) + body, receive_buffer=4096))
            await asyncio.sleep(0.1)
        await asyncio.sleep(34)
        left = sum(map(_connected, sockets))
    for client in sockets:
        client.close()
    p95 = ledger.percentile(0.95)
    failed = len(ledger.failed(MODELS))
    met = not failed and p95 <= 1.5 * normal and not left and not server.speaking()
    note = f"p95 {1000 * normal:.0f} -> {1000 * p95:.0f} ms; {left} of {len(sockets)} still connected"
    return _row(ledger, failed, met, note=note, orphans=server.speaking())


async def flood(server: ChaosServer) -> Row:
    """Ask a model for 10 times its capacity, for 30 s | accepted requests answered; refused ones 429 with Retry-After,
    p99 < 50 ms; recovered within 5 s; another model beside it: 0 failed, p95 at most 1.5 times"""
    beside = await _p95(server, models=[MODELS[0]])
    async with server.load(100, models=[SMALL]) as ledger, server.load(6, models=[MODELS[0]]) as other:
        await asyncio.sleep(30)
    ended = time.monotonic()
    async with server.load(4, models=[SMALL]) as after:
        await asyncio.sleep(8)
    accepted = [entry for entry in ledger.entries if entry.status == 200]
    refused = [entry for entry in ledger.entries if entry.status == 429]
    improper = [entry for entry in refused if not (entry.whole and entry.code) or not entry.retry_after.isdigit()]
    lost = [entry for entry in ledger.entries if entry.status not in (200, 429)]
    broken = [entry for entry in accepted if not entry.ok or entry.columns.get(SMALL) != "ok"]
    speed = percentile([entry.seconds for entry in refused], 0.99)
    recover = after.recovery(ended, lambda entry: entry.ok and entry.seconds < 1.5)
    p95 = other.percentile(0.95)
    neighbours = len(other.failed(MODELS))
    bad = len(improper) + len(lost) + len(broken) + neighbours
    met = not bad and speed < 0.05 and recover <= 5 and p95 <= 1.5 * beside
    note = (
        f"{len(accepted)} answered, {len(refused)} refused, p99 {1000 * speed:.0f} ms; neighbour p95 "
        f"{1000 * beside:.0f} -> {1000 * p95:.0f} ms"
    )
    return _row(ledger, bad, met, recover=recover, note=note)


async def straggler(server: ChaosServer) -> Row:
    """Ask a model that is 20 times slower | the fan-out ends at its deadline + 0.2 s; the late model's work ends"""
    async with server.load(8, models=[*OTHERS, LATE], deadline_s=1.0) as ledger:
        await asyncio.sleep(8)
    failed = len(ledger.failed(OTHERS))
    late = sum(entry.seconds > 1.2 for entry in ledger.entries)
    timeouts = all(entry.columns.get(LATE) == "deadline_exceeded" for entry in ledger.entries if entry.ok)
    quiet = await server.quiet(2)
    met = not failed and not late and timeouts and quiet <= 1
    codes = {entry.columns.get(LATE, "-") for entry in ledger.entries}
    note = f"{late} later than 1.2 s; its column: {', '.join(sorted(codes))}"
    return _row(ledger, failed, met, note=note, orphans=server.speaking())


async def garbage(server: ChaosServer) -> Row:
    """Ask models that reply nothing, 300 KB, a NaN log-probability, or break off | the other column ok, no 5xx"""
    failed, count, notes = 0, 0, []
    whole = Ledger()
    for name in BROKEN:
        async with server.load(6, models=[MODELS[0], name]) as ledger:
            await asyncio.sleep(3)
        failed += len(ledger.failed([MODELS[0]]))
        count += len(ledger.entries)
        whole.entries += ledger.entries
        notes.append(f"{name}: {', '.join(sorted({entry.columns.get(name, '-') for entry in ledger.entries}))}")
    return _row(whole, failed, failed == 0, note="; ".join(notes))


async def few_descriptors(server: ChaosServer) -> Row:
    """Leave the gateway 60 descriptors for 200 sockets | answers within 5 s of their leaving; same process"""
    gateway = server.process("gateway")
    soft, hard = resource.prlimit(gateway, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway, resource.RLIMIT_NOFILE, (psutil.Process(gateway).num_fds() + 60, hard))
    sockets = [_connect(server, b"") for _ in range(200)]
    await asyncio.sleep(3)
    for client in sockets:
        client.close()
    at = time.monotonic()
    async with server.load() as ledger:
        await asyncio.sleep(8)
    resource.prlimit(gateway, resource.RLIMIT_NOFILE, (soft, hard))
    recover = ledger.recovery(at, lambda entry: entry.ok)
    same = server.process("gateway") == gateway
    return _row(ledger, 0, recover <= 5 and same, recover=recover)


async def busy_machine(server: ChaosServer) -> Row:
    """Run two loops at nice -5 beside it for 15 s | no process is replaced, nobody hangs, 0 failed"""
    roles = ("gateway", *MODELS)
    before = [server.process(role) for role in roles]
    loops = [
        subprocess.Popen([sys.executable, "-c", "import os\nos.nice(-5)\nwhile True: pass"], stderr=subprocess.DEVNULL)
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        async with server.load(4) as ledger:
            await asyncio.sleep(15)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    failed = len(ledger.failed(MODELS))
    same = before == [server.process(role) for role in roles]
    return _row(ledger, failed, failed == 0 and same, note=f"p95 {ledger.percentile(0.95):.1f} s")


async def large_pictures(server: ChaosServer) -> Row:
    """Send 50 pictures of 12 megapixels at once | /health p99 < 200 ms meanwhile; all answered"""
    large = [data_url(picture) for picture in islice(pictures("12mp", 3), 3)]
    bodies = [json.dumps(server.question(image=large[at % 3], deadline_s=60)).encode() for at in range(50)]
    ledger = Ledger()
    probes = Probes(server.url, HEALTH)  # a process of its own: this one has fifty bodies of two megabytes to send
    began = time.monotonic()
    async with session() as http:
        await asyncio.gather(*(server.ask(http, ledger, body, deadline_s=60) for body in bodies))
    samples = probes.during(HEALTH, began, time.monotonic())
    probes.close()
    failed = len(ledger.failed(MODELS))
    p99 = percentile([sample.seconds for sample in samples], 0.99)
    return _row(ledger, failed, failed == 0 and p99 < 0.2, note=f"/health p99 {1000 * p99:.0f} ms")


async def terminated(server: ChaosServer) -> Row:
    """Send SIGTERM under load (last: the server is gone) | requests begun before are answered, later ones refused; exit
    code 0, no process left, the port free"""
    processes = server.tree.all()
    async with server.load() as ledger:
        await asyncio.sleep(3)
        at = time.monotonic()
        os.kill(server.tree.root, signal.SIGTERM)
        while any(map(_alive, processes)) and time.monotonic() < at + 25:
            await asyncio.sleep(0.2)
    ended = os.waitid(os.P_PID, server.tree.root, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    code = ended.si_status if ended is not None else "none"
    begun = [entry for entry in ledger.entries if entry.sent < at - 0.05]
    cut = [entry for entry in begun if not entry.ok]
    new = [entry for entry in ledger.entries if entry.sent >= at]
    wrong = [
        entry for entry in new if not (entry.ok or entry.code == "stopping" or entry.trouble.startswith("ClientConn"))
    ]
    left = sum(map(_alive, processes))
    address = urlsplit(server.url)
    with contextlib.suppress(OSError), socket.create_server((address.hostname, address.port)):
        free = not left
        note = f"{len(begun)} begun, {len(cut)} cut; {len(new)} new, {len(wrong)} wrong; {left} left, exit code {code}"
        return _row(ledger, len(cut) + len(wrong), not cut and not wrong and free and code == 0, note=note)
    return _row(ledger, len(cut), False, note="the port is taken")


FAULTS: dict[str, Fault] = {
    "F1": killed_replica,
    "F3": stopped_replica,
    "F4": killed_gateway,
    "F6": killed_controller,
    "F9": disconnects,
    "F10": slow_readers,
    "F11": slow_loris,
    "F12, F13": flood,
    "F14": straggler,
    "F15": garbage,
    "F20": few_descriptors,
    "F23": busy_machine,
    "F26": large_pictures,
    "F7": killed_control_store,
    "F8": terminated,
}
ELSEWHERE = {
    "F2": "EngineCore killed and stopped: tests/deployments/local/test_server.py",
    "F5": "there is no HTTP proxy: the gateway has its own port (F4)",
    "F16": "weights that cannot be read: tests/deployments/local/test_ray.py, tests/engines/vllm/test_config_check.py",
    "F17, F18": "a config that changes under load, broken ones: tests/deployments/local/test_update.py",
    "F19": "not run: a full disk needs a mount of its own; Diptych writes no file while it serves but Ray's logs",
    "F21": "not run with a memory limit; pictures are bounded (tests/media/test_decoding.py, test_hostile_pictures.py)",
    "F22": "not run: no clock was turned; deadlines use the monotonic clock (asyncio's) everywhere",
    "F24": "an origin that hangs, drips, lies: tests/media/fetch/test_fetcher.py",
    "F25": "a request that kills: tests/deployments/routing/test_quarantine.py, test_pool.py",
    "F27": "as F3: a gateway and a replica that do not hear each other",
    "F28": "make soak",
}


def _row(ledger: Ledger, failed: int, met: bool, **more: Any) -> Row:
    hung = len(ledger.hung())
    return Row(len(ledger.entries), failed, hung, met and not hung, **more)


async def _p95(server: ChaosServer, **fields: object) -> float:
    """Return the p95 in seconds without a fault."""
    async with server.load(12, **fields) as ledger:
        await asyncio.sleep(5)
    return ledger.percentile(0.95)


def _connect(server: ChaosServer, data: bytes, receive_buffer: int | None = None) -> socket.socket:
    """Return a connection over which this data was sent."""
    address = urlsplit(server.url)
    client = socket.socket()
    if receive_buffer is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.settimeout(5)
    client.connect((address.hostname, address.port))
    client.sendall(data)
    return client


def _count_open(clients: list[socket.socket], until: float) -> int:
    """Return how many of the connections the server has not closed by this time, and close them."""
    left = 0
    for client in clients:
        client.settimeout(max(0.01, until - time.monotonic()))
        try:
            while client.recv(4096):
                pass
        except TimeoutError:
            left += 1
        except OSError:
            pass
        client.close()
    return left


def _connected(client: socket.socket) -> bool:
    """Return whether the connection is established, as far as this machine's kernel knows."""
    return client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def _alive(process: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False
