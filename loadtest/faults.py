"""What is done to the server, one function each, and the line that it has to hold (README.md, "Faults")."""

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
from urllib.parse import urlsplit

import aiohttp
import psutil

from loadtest.ledger import Entry, Ledger, percentile
from loadtest.pictures import data_url, pictures
from loadtest.world import BROKEN, LATE, MODELS, SMALL, World

VICTIM = MODELS[1]
OTHERS = tuple(name for name in MODELS if name != VICTIM)
ESTABLISHED = 1
NEVER = float("inf")


@dataclass
class Row:
    """What became of it. failed: beyond what the line allows; times in seconds, None where there is none to tell."""

    requests: int
    failed: int
    hung: int
    met: bool
    detect: float | None = None
    recover: float | None = None
    orphans: int = 0
    note: str = ""


PULSE = """
import json, select, sys, time, urllib.request
from loadtest.probes import take_priority
take_priority()
times = []
while not select.select([sys.stdin], [], [], 0.05)[0]:
    began = time.monotonic()
    urllib.request.urlopen(sys.argv[1]).read()
    times.append(time.monotonic() - began)
print(json.dumps(times))
"""
Fault = Callable[[World], Awaitable[Row]]


async def killed_replica(world: World) -> Row:
    """kill -9 of a model's replica | others 0 failed; its own errors within 1 s; back within 5 s"""
    async with world.load() as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(world.process(VICTIM), signal.SIGKILL)
        await asyncio.sleep(10)
    failed = len(ledger.failed(OTHERS))
    detect = ledger.first(at - 1, lambda one: one.columns.get(VICTIM, "ok") != "ok")
    slow = [one for one in ledger.errors(VICTIM) if one.took > 1.0]
    recover = ledger.well_again(at, lambda one: one.columns.get(VICTIM) == "ok")
    return _row(ledger, failed, failed == 0 and not slow and recover <= 5, detect and max(0.0, detect - 1), recover)


async def stopped_replica(world: World) -> Row:
    """SIGSTOP of a replica for 30 s, then SIGCONT | others 0 failed; out of rotation within 10 s; no work left over"""
    process = world.process(VICTIM)
    async with world.load(6) as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(process, signal.SIGSTOP)
        await asyncio.sleep(30)
        with contextlib.suppress(OSError):
            os.kill(process, signal.SIGCONT)
        going = time.monotonic()
        await asyncio.sleep(15)
    failed = len(ledger.failed(OTHERS))
    out = ledger.well_again(at, lambda one: not (at <= one.sent < going) or one.took < 1.5)
    recover = ledger.well_again(going, lambda one: one.columns.get(VICTIM) == "ok")
    orphans = 0 if await world.quiet(5) < NEVER else world.speaking()
    met = failed == 0 and out <= 10 and orphans == 0 and recover < NEVER
    return _row(ledger, failed, met, out, recover, orphans)


async def killed_gateway(world: World) -> Row:
    """kill -9 of the gateway mid-stream | nobody hangs; its work is gone within 5 s; answers again within 5 s"""
    async with world.load() as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(world.process("gateway"), signal.SIGKILL)
        await asyncio.sleep(0.2)
        quiet = await world.quiet(5)
        await asyncio.sleep(10)
    recover = ledger.well_again(at, lambda one: one.ok)
    hung = len(ledger.hung())
    cut = sum(not one.ok for one in ledger.entries)
    met = not hung and quiet <= 5 and recover <= 5
    return _row(ledger, 0, met, None, recover, 0 if quiet < NEVER else world.speaking(), f"{cut} cut or refused")


async def killed_controller(world: World) -> Row:
    """kill -9 of Serve's controller | 0 failed"""
    async with world.load() as ledger:
        await asyncio.sleep(2)
        os.kill(world.process("controller"), signal.SIGKILL)
        await asyncio.sleep(13)
    failed = len(ledger.failed(MODELS))
    return _row(ledger, failed, failed == 0)


async def killed_control_store(world: World) -> Row:
    """kill -9 of Ray's gcs_server | refused or answered, nobody hangs; all is started again within 60 s"""
    async with world.load(6) as ledger:
        await asyncio.sleep(2)
        at = time.monotonic()
        os.kill(world.process("gcs_server"), signal.SIGKILL)
        until = at + 60
        while time.monotonic() < until and not _answered(ledger, at + 3):
            await asyncio.sleep(0.5)
        await asyncio.sleep(3)
    recover = ledger.well_again(at, lambda one: one.ok and set(one.columns.values()) == {"ok"})
    hung = len(ledger.hung())
    away = sum(not one.ok for one in ledger.entries)
    return _row(ledger, 0, not hung and recover <= 60, None, recover, 0, f"{away} cut or refused meanwhile")


def _answered(ledger: Ledger, after: float) -> bool:
    return any(one.ok and one.sent > after and set(one.columns.values()) == {"ok"} for one in ledger.entries[-8:])


async def disconnects(world: World) -> Row:
    """500 clients leave at random points | no engine speaks 1 s later; file descriptors and memory go back"""
    gateway = world.process("gateway")
    handles, before = psutil.Process(gateway).num_fds(), world.memory()
    draw = world.random

    async def leave(session: aiohttp.ClientSession) -> None:
        asked = world.question(stream=draw.random() < 0.5, deadline_s=30)
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async with asyncio.timeout(draw.uniform(0.0, 1.2)):
                async with session.post(f"{world.url}/v1/tasks/vqa", json=asked) as reply:
                    await reply.read()

    for _ in range(10):
        async with world.people() as session:
            await asyncio.gather(*(leave(session) for _ in range(50)))
    quiet = await world.quiet(10)
    await asyncio.sleep(1)
    left = psutil.Process(gateway).num_fds() - handles
    grown = world.memory() / before - 1
    async with world.load() as ledger:
        await asyncio.sleep(3)
    failed = len(ledger.failed(MODELS))
    met = quiet <= 1 and left <= 5 and grown < 0.05 and not failed
    note = f"quiet after {quiet:.1f} s, {left:+} file descriptors, {100 * grown:+.1f}% memory"
    return _row(ledger, failed, met, None, None, world.speaking(), note)


async def slow_loris(world: World) -> Row:
    """200 heads and 50 bodies that never end | closed within 10 and 30 s (+2); the others' p95 at most 1.5 times"""
    normal = await _p95(world)
    heads = [_said(world, b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: x\r\nx-a: ") for _ in range(200)]
    start = b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    bodies = [_said(world, start) for _ in range(50)]
    began = time.monotonic()
    async with world.load() as ledger:
        closing = [asyncio.to_thread(_closed, heads, began + 12), asyncio.to_thread(_closed, bodies, began + 33)]
        open_heads, open_bodies = await asyncio.gather(*closing)
    p95 = percentile([one.took for one in ledger.entries], 0.95)
    failed = len(ledger.failed(MODELS))
    met = not failed and not open_heads and not open_bodies and p95 <= 1.5 * normal
    note = f"p95 {1000 * normal:.0f} -> {1000 * p95:.0f} ms; left open {open_heads}, {open_bodies}"
    return _row(ledger, failed, met, note=note)


async def slow_readers(world: World) -> Row:
    """50 clients ask for 300 KB, in five seconds, and read nothing | the others' p95 at most 1.5 times; left in 35 s"""
    normal = await _p95(world)
    body = json.dumps(world.question(models=["long"], stream=True, deadline_s=60)).encode()
    head = b"POST /v1/tasks/vqa HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    sockets: list[socket.socket] = []
    async with world.load() as ledger:
        for _ in range(50):
            sockets.append(_said(world, head % len(body) + body, room=4096))
            await asyncio.sleep(0.1)
        await asyncio.sleep(1)
        await asyncio.sleep(33)
        left = sum(map(_connected, sockets))
    for one in sockets:
        one.close()
    p95 = percentile([one.took for one in ledger.entries], 0.95)
    failed = len(ledger.failed(MODELS))
    met = not failed and p95 <= 1.5 * normal and not left and not world.speaking()
    note = f"p95 {1000 * normal:.0f} -> {1000 * p95:.0f} ms; {left} of {len(sockets)} still connected"
    return _row(ledger, failed, met, note=note, orphans=world.speaking())


async def flood(world: World) -> Row:
    """one model asked for 10 times what it can, for 30 s | accepted ones answered; refused ones 429 with Retry-After,
    p99 < 50 ms; well again within 5 s; another model beside it: 0 failed, p95 at most 1.5 times"""
    beside = await _p95(world, models=[MODELS[0]])
    async with world.load(100, models=[SMALL]) as ledger, world.load(6, models=[MODELS[0]]) as other:
        await asyncio.sleep(30)
    ended = time.monotonic()
    async with world.load(4, models=[SMALL]) as after:
        await asyncio.sleep(8)
    accepted = [one for one in ledger.entries if one.status == 200]
    refused = [one for one in ledger.entries if one.status == 429]
    improper = [one for one in refused if not one.told or not one.retry_after.isdigit()]
    lost = [one for one in ledger.entries if one.status not in (200, 429)]
    broken = [one for one in accepted if not one.ok or one.columns.get(SMALL) != "ok"]
    speed = percentile([one.took for one in refused], 0.99)
    recover = after.well_again(ended, lambda one: one.ok and one.took < 1.5)
    p95 = percentile([one.took for one in other.entries], 0.95)
    neighbours = len(other.failed(MODELS))
    bad = len(improper) + len(lost) + len(broken) + neighbours
    met = not bad and speed < 0.05 and recover <= 5 and p95 <= 1.5 * beside
    note = (
        f"{len(accepted)} answered, {len(refused)} refused, p99 {1000 * speed:.0f} ms; neighbour p95 "
        f"{1000 * beside:.0f} -> {1000 * p95:.0f} ms"
    )
    return _row(ledger, bad, met, None, recover, note=note)


async def straggler(world: World) -> Row:
    """one model 20 times slower | the fan-out ends at its deadline + 0.2 s; the late one's work ends"""
    async with world.load(8, models=[*OTHERS, LATE], deadline_s=1.0) as ledger:
        await asyncio.sleep(8)
    failed = len(ledger.failed(OTHERS))
    late = sum(one.took > 1.2 for one in ledger.entries)
    timeouts = all(one.columns.get(LATE) == "deadline_exceeded" for one in ledger.entries if one.ok)
    quiet = await world.quiet(2)
    met = not failed and not late and timeouts and quiet <= 1
    codes = {one.columns.get(LATE, "-") for one in ledger.entries}
    note = f"{late} later than 1.2 s; its column: {', '.join(sorted(codes))}"
    return _row(ledger, failed, met, note=note, orphans=world.speaking())


async def garbage(world: World) -> Row:
    """models that say nothing, 300 KB, NaN for a log-probability, or break off | the other column ok, no 5xx"""
    failed, count, notes = 0, 0, []
    whole = Ledger()
    for name in BROKEN:
        async with world.load(6, models=[MODELS[0], name]) as ledger:
            await asyncio.sleep(3)
        failed += len(ledger.failed([MODELS[0]]))
        count += len(ledger.entries)
        whole.entries += ledger.entries
        notes.append(f"{name}: {', '.join(sorted({one.columns.get(name, '-') for one in ledger.entries}))}")
    return _row(whole, failed, failed == 0, note="; ".join(notes))


async def few_descriptors(world: World) -> Row:
    """the gateway has 60 file descriptors left, 200 sockets come | answers within 5 s of their leaving; same process"""
    gateway = world.process("gateway")
    soft, hard = resource.prlimit(gateway, resource.RLIMIT_NOFILE)
    resource.prlimit(gateway, resource.RLIMIT_NOFILE, (psutil.Process(gateway).num_fds() + 60, hard))
    sockets = [_said(world, b"") for _ in range(200)]
    await asyncio.sleep(3)
    for one in sockets:
        one.close()
    at = time.monotonic()
    async with world.load() as ledger:
        await asyncio.sleep(8)
    resource.prlimit(gateway, resource.RLIMIT_NOFILE, (soft, hard))
    recover = ledger.well_again(at, lambda one: one.ok)
    same = world.process("gateway") == gateway
    return _row(ledger, 0, recover <= 5 and same, None, recover)


async def busy_machine(world: World) -> Row:
    """two loops at nice -5 beside it for 15 s | no process is replaced, nobody hangs, 0 failed"""
    roles = ("gateway", *MODELS)
    before = [world.process(role) for role in roles]
    loops = [
        subprocess.Popen([sys.executable, "-c", "import os\nos.nice(-5)\nwhile True: pass"], stderr=subprocess.DEVNULL)
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        async with world.load(4) as ledger:
            await asyncio.sleep(15)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    failed = len(ledger.failed(MODELS))
    same = before == [world.process(role) for role in roles]
    return _row(ledger, failed, failed == 0 and same, note=f"p95 {percentile(_times(ledger), 0.95):.1f} s")


async def large_pictures(world: World) -> Row:
    """50 pictures of 12 megapixels at once | /health p99 < 200 ms meanwhile; all answered"""
    made = pictures("12mp", 3)
    large = [data_url(next(made)) for _ in range(3)]
    bodies = [world.encoded(world.question(image=large[at % 3], deadline_s=60)) for at in range(50)]
    ledger = Ledger()
    # In a process of its own: this one has fifty bodies of two megabytes to send.
    pulse = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PULSE, f"{world.url}/health"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    async with world.people() as session:
        await asyncio.gather(*(world.ask(session, ledger, body, deadline_s=60) for body in bodies))
    said, _ = await pulse.communicate(b"enough")
    failed = len(ledger.failed(MODELS))
    p99 = percentile(json.loads(said), 0.99)
    return _row(ledger, failed, failed == 0 and p99 < 0.2, note=f"/health p99 {1000 * p99:.0f} ms")


async def told_to_stop(world: World) -> Row:
    """SIGTERM under load (last: the server is gone) | what was begun is answered, what is new refused; exit code 0, no
    process left, the port free"""
    processes = world.side.tree.all()
    async with world.load() as ledger:
        await asyncio.sleep(3)
        at = time.monotonic()
        os.kill(world.side.tree.root, signal.SIGTERM)
        while any(map(_alive, processes)) and time.monotonic() < at + 25:
            await asyncio.sleep(0.2)
    ended = os.waitid(os.P_PID, world.side.tree.root, os.WEXITED | os.WNOWAIT | os.WNOHANG)
    code = ended.si_status if ended is not None else "none"
    begun = [one for one in ledger.entries if one.sent < at - 0.05]
    cut = [one for one in begun if not one.ok]
    new = [one for one in ledger.entries if one.sent >= at]
    wrong = [one for one in new if not (one.ok or one.code == "stopping" or one.trouble.startswith("ClientConn"))]
    left = sum(map(_alive, processes))
    address = urlsplit(world.url)
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
    "F8": told_to_stop,
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


def _row(
    ledger: Ledger,
    failed: int,
    met: bool,
    detect: float | None = None,
    recover: float | None = None,
    orphans: int = 0,
    note: str = "",
) -> Row:
    hung = len(ledger.hung())
    return Row(len(ledger.entries), failed, hung, met and not hung, detect, recover, orphans, note)


def _times(ledger: Ledger) -> list[float]:
    return [one.took for one in ledger.entries]


async def _p95(world: World, **fields: object) -> float:
    """Seconds, with nothing wrong."""
    async with world.load(12, **fields) as ledger:
        await asyncio.sleep(5)
    return percentile(_times(ledger), 0.95)


def _said(world: World, words: bytes, room: int | None = None) -> socket.socket:
    """A connection that has said so much."""
    address = urlsplit(world.url)
    one = socket.socket()
    if room is not None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    one.settimeout(5)
    one.connect((address.hostname, address.port))
    one.sendall(words)
    return one


def _closed(sockets: list[socket.socket], until: float) -> int:
    """How many of them the other side has not closed by then."""
    left = 0
    for one in sockets:
        one.settimeout(max(0.01, until - time.monotonic()))
        try:
            while one.recv(4096):
                pass
        except TimeoutError:
            left += 1
        except OSError:
            pass
        one.close()
    return left


def _connected(one: socket.socket) -> bool:
    """Whether the other side holds the connection still, for all that the kernel knows."""
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED


def _alive(process: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    return False


__all__ = ["ELSEWHERE", "FAULTS", "Entry", "Row"]
