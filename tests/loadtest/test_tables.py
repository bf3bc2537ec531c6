"""The targets of `make bench` and `make bench-many-servers`: what failed meets none, and no number is lost."""

import argparse
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from lazy_module import LazyModule

from loadtest import many_servers, measurement, tables
from loadtest.measurement import Measurement
from loadtest.servers import NotAnswering

compare, curves = LazyModule("loadtest.compare"), LazyModule("loadtest.curves")  # matplotlib


def measured(side: str, *, clients: int = 1, rate: float = 20.0, first: float = 30.0, errors: int = 0) -> Measurement:
    case = measurement.Case("closed", clients, True, 16, "1x", 40)
    times = dict.fromkeys(("first", "first_p95", "latency", "latency_p95"), first)
    return Measurement(
        side=side,
        case=case,
        round=0,
        rate=rate,
        **times,
        gap=10,
        gap_p95=10,
        cpu={"server": 5},
        memory_mb={},
        errors=errors,
        error="500" if errors else "",
        prompt_tokens=60,
        tokens=16,
    )


def block(side: str, *, rate: float = 20.0, time: float = 30.0, failed: int = 0) -> many_servers.Block:
    return many_servers.Block(
        side=side,
        case=many_servers.Case(2, False, "2mp", 4),
        round=0,
        rate=rate,
        p50=time,
        p99=time,
        first=time,
        outside=5,
        engines=5,
        client=1,
        sent=100,
        cpu={},
        prompt_tokens=[60],
        failed=failed,
        error="500" if failed else "",
    )


def test_answered_requests_of_both_sides_meet_their_target() -> None:
    assert tables.targets([measured("A"), measured("B")])[0]


@pytest.mark.parametrize("clients", [1, 32])
@pytest.mark.parametrize("side", ["A", "B"])
def test_side_that_fails_all_requests_misses_the_targets(side: str, clients: int) -> None:
    dead = measured(side, clients=clients, rate=0, first=0, errors=40)
    met, text = tables.targets([dead, measured("B" if side == "A" else "A", clients=clients)])
    assert not met and f"MISSED  requests of {side} that failed, 0: 40" in text and "to A <= 1: 0.00" not in text


def test_side_that_fails_some_requests_misses_the_targets() -> None:
    met, text = tables.targets([measured("A", clients=32), measured("B", clients=32, rate=25, errors=3)])
    assert not met and "MISSED  requests of B that failed, 0: 3" in text and "replies/s to A >= 1.1: 1.25" in text


@pytest.mark.parametrize("side", ["A", "B"])
def test_fan_outs_that_all_fail_miss_the_targets_and_have_a_table(side: str) -> None:
    blocks = [block(side, rate=0, time=3, failed=80), block("B" if side == "A" else "A")]
    met, text = many_servers._targets(blocks)
    assert not met and f"MISSED  fan-outs of {side} that failed, 0: 80" in text and "0.10" not in text
    assert "Failed fan-outs: 80." in many_servers._summary(blocks)


def test_curves_have_a_colour_for_every_server() -> None:
    assert curves.COLOURS.keys() == compare.KINDS.keys()


def test_benchmark_whose_server_dies_keeps_its_measurements(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    servers = [SimpleNamespace(kind=compare.KINDS[key]) for key in "AB"]
    left = [True, True, False]

    @contextlib.contextmanager
    def all_of(_: object) -> Iterator[Any]:
        yield servers

    @contextlib.contextmanager
    def only(_: object, __: object) -> Iterator[None]:
        if not left.pop(0):
            raise NotAnswering("it answers no more")
        yield

    async def measure(server: Any, case: object, round: int) -> Measurement:
        return measured(server.kind.key)

    monkeypatch.setattr("loadtest.compare._all", all_of)
    monkeypatch.setattr("loadtest.compare.only", only)
    monkeypatch.setattr("loadtest.compare.measure", measure)
    monkeypatch.setattr("loadtest.curves.draw", lambda *_: None)
    parser = argparse.ArgumentParser()
    compare.options(parser)
    line = ["--sides", "A,B", "--clients", "1", "--rates=", "--long", "0", "--large", "0", "--rounds", "1"]
    options = parser.parse_args(line)
    _, values, met = compare.run(argparse.Namespace(**vars(options), out=str(tmp_path)))
    assert len(values["blocks"]) == 2 and not met
    assert "MISSED  it ended before its time: it answers no more" in capsys.readouterr().out
