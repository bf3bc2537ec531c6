"""The energy of requests: divided among those that run, read from NVML as its library gives it, absent elsewhere."""

import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from serve.engines import energy
from serve.engines.energy import EnergyMeter, meter_of_own_gpus


class FakeClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeNvml(ModuleType):
    """Stands for nvidia-ml-py: two cards, the second of which does not count."""

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.millijoules = {"0": 5_000.0, "GPU-a": 5_000.0}
        self.handles: list[str] = []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        return str(index)

    def nvmlDeviceGetHandleByUUID(self, name: str) -> str:
        return name

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> float:
        self.handles.append(handle)
        if handle not in self.millijoules:
            raise self.NVMLError("Not Supported")
        return self.millijoules[handle]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNvml]:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setenv(energy.DEVICES, "0")
    yield fake


def test_energy_is_divided_among_the_requests_that_run_and_none_is_lost() -> None:
    clock = FakeClock()
    meter = EnergyMeter(lambda: 0.0, clock)
    meter.sample(0.0)
    clock.now = 1.0
    meter.sample(100.0)  # 100 W from here on
    with meter.request() as first:
        clock.now = 2.0
        with meter.request() as second:
            clock.now = 4.0
            assert second() == pytest.approx(100.0)
        clock.now = 5.0
        assert first() == pytest.approx(100.0 + 100.0 + 100.0)
    clock.now = 9.0
    with meter.request() as third:
        clock.now = 9.5
        assert third() == pytest.approx(50.0)


def test_energy_is_absent_before_the_first_look_and_after_the_counters_are_lost() -> None:
    clock = FakeClock()
    meter = EnergyMeter(lambda: 0.0, clock)
    with meter.request() as used:
        assert used() is None
        meter.sample(1.0)
        assert used() == 0.0
        meter.sample(None)
        assert used() is None


@pytest.mark.parametrize("devices", ["0", "GPU-a"])
async def test_counter_of_the_engines_own_gpu_is_read_in_joules(
    devices: str, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(energy.DEVICES, devices)
    meter = meter_of_own_gpus(1, shared=False)
    assert meter is not None and set(nvml.handles) == {devices}
    meter._clock = clock = FakeClock()
    meter._at = meter._sampled_at = 0.0
    meter.sample(meter._read())
    nvml.millijoules[devices] += 2_000
    clock.now = 1.0
    meter.sample(meter._read())
    with meter.request() as used:
        clock.now = 2.0
        assert used() == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("gpus", "shared", "devices"),
    [(0, False, "0"), (0.5, False, "0"), (1.5, False, "0,1"), (1, True, "0"), (2, False, "0"), (1, False, "MIG-a"),
     (1, False, "1"), (1, False, "")],
)  # fmt: skip
def test_there_is_no_meter_where_the_engine_has_no_gpu_of_its_own_that_counts(
    gpus: float, shared: bool, devices: str, nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(energy.DEVICES, devices)
    assert meter_of_own_gpus(gpus, shared=shared) is None


def test_there_is_no_meter_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "LIBRARIES", ("no_such_module",))
    assert meter_of_own_gpus(1, shared=False) is None


async def test_watching_ends_where_the_counter_fails(nvml: FakeNvml) -> None:
    meter = meter_of_own_gpus(1, shared=False)
    assert meter is not None
    nvml.millijoules.clear()
    await meter.watch()
    with meter.request() as used:
        assert used() is None
