import os
import types
from dataclasses import replace

import psutil
import pynvml
import pytest
from samples import LAPTOP

from rresnet import hardware
from rresnet.quality import flags, monitor
from rresnet.quality.monitor import Monitor


def test_what_the_process_does_is_counted_inside_the_blocks_alone():
    watched = Monitor()
    sum(range(3_000_000))
    with watched.watching():
        sum(range(3_000_000))
    one = watched.usage()
    with watched.watching():
        sum(range(3_000_000))
    assert 0 < one.seconds < watched.usage().seconds
    assert 0 < one.cpu_seconds <= one.seconds * 1.5
    assert one.gpu_utilization_percent is None


def watched_on(monkeypatch, listed, may_use, quota=None):
    """What is counted where processors, busy and stolen from so long, are listed, and some of them may be used."""
    first = [types.SimpleNamespace(user=0.0, steal=0.0) for _ in listed]
    second = [types.SimpleNamespace(user=busy, steal=stolen) for busy, stolen in listed]
    listings = iter([first, second])
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: next(listings))
    monkeypatch.setattr(hardware, "cpus", lambda: frozenset(may_use))
    monkeypatch.setattr(hardware, "probe", lambda: replace(LAPTOP, cpu_count=quota or len(may_use)))
    watched = Monitor()
    with watched.watching():
        pass
    return watched.usage()


def test_work_on_processors_that_this_process_may_not_use_is_not_in_its_way(monkeypatch):
    found = watched_on(monkeypatch, [(5.0, 0.5), (7.0, 2.0), (9.0, 4.0)], may_use={0, 2})
    assert (found.busy_cpu_seconds, found.steal_cpu_seconds) == (14.0, 4.5)
    assert found.foreign_cpu_seconds == pytest.approx(14.0, abs=0.5)


def test_a_container_may_list_its_own_processors_numbered_anew(monkeypatch):
    found = watched_on(monkeypatch, [(5.0, 0.5), (7.0, 2.0)], may_use={4, 5})
    assert (found.busy_cpu_seconds, found.steal_cpu_seconds) == (12.0, 2.5)


@pytest.mark.parametrize(("may_use", "quota"), [({0, 1, 2}, 2), ({0, 7}, None)])
def test_others_work_is_not_known_under_a_quota_nor_on_processors_not_listed(monkeypatch, may_use, quota):
    found = watched_on(monkeypatch, [(50.0, 20.0)] * 3, may_use, quota)
    assert (found.foreign_cpu_seconds, found.steal_cpu_seconds) == (None, None)
    assert flags.of_machine(found, cpu_count=2) == []


def test_a_counter_that_fell_tells_nothing(monkeypatch):
    """As that of stolen time may, when a virtual machine moves to another host."""
    assert watched_on(monkeypatch, [(5.0, -0.5)], {0}).steal_cpu_seconds is None


@pytest.fixture
def nvml(monkeypatch):
    """NVML of a GPU that is throttled for heat, shared with process 1, and has used 2 J between two readings.

    Which policies held it down for how long it does not tell.
    """
    energy = iter([5000, 7000, 9000])

    def untold(handle, policy):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    fakes = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: next(energy),
        "nvmlDeviceGetUtilizationRates": lambda handle: types.SimpleNamespace(gpu=83),
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda handle: pynvml.nvmlClocksThrottleReasonHwThermalSlowdown,
        "nvmlDeviceGetViolationStatus": untold,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
            types.SimpleNamespace(pid=os.getpid()),
            types.SimpleNamespace(pid=1),
        ],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(pynvml, name, fake)
    return fakes


def test_a_gpus_readings(nvml):
    watched = Monitor("1234-abcd")
    assert watched._gpu._handle == "GPU-1234-abcd"
    with watched.watching():
        pass
    found = watched.usage()
    assert found.energy_joules == 2
    assert found.gpu_utilization_percent == 83
    assert found.gpu_throttled
    assert found.gpu_foreign_processes == 1


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (False, False)])
def test_a_gpu_that_does_not_tell_was_throttled_if_it_is_so_before_or_after(nvml, monkeypatch, before, after):
    heat = pynvml.nvmlClocksThrottleReasonHwThermalSlowdown
    reasons = iter([before * heat, after * heat])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: next(reasons))
    watched = Monitor("x")
    with watched.watching():
        pass
    assert watched.usage().gpu_throttled is (before or after)


@pytest.mark.parametrize(("power", "heat", "throttled"), [(0.0, 0.0, False), (0.09, 0.0, False), (0.07, 0.05, True)])
def test_a_gpu_that_tells_how_long_it_was_held_down_was_throttled_for_a_share_of_the_time(
    nvml, monkeypatch, power, heat, throttled
):
    """Whatever reasons it names at the edges: there it begins to work, or to idle."""
    held = {pynvml.NVML_PERF_POLICY_POWER: power, pynvml.NVML_PERF_POLICY_THERMAL: heat}
    clock = [100.0]
    monkeypatch.setattr(monitor.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetViolationStatus",
        lambda handle, policy: types.SimpleNamespace(violationTime=int(clock[0] * held[policy] * 1e9)),
    )
    watched = Monitor("x")
    with watched.watching():
        clock[0] += 10
    assert watched.usage().gpu_throttled is throttled


def test_what_the_same_ray_has_started_is_not_foreign_to_a_trial(nvml, monkeypatch):
    monkeypatch.setattr(os, "getppid", lambda: 5)
    parents = {7: 5, 8: 1, 9: None}  # a worker that waits, another program, one that has just ended
    processes = [types.SimpleNamespace(pid=pid) for pid in (os.getpid(), *parents)]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: processes)
    monkeypatch.setattr(monitor, "_parent", parents.get)
    assert monitor._Gpu("x").foreign_processes() == 2


def test_the_parent_of_a_process_is_told_while_it_is_there():
    assert monitor._parent(os.getpid()) == os.getppid()
    assert monitor._parent(2**22 + 1) is None  # more than Linux has


def test_idle_clocks_are_not_throttling(nvml, monkeypatch):
    reasons = pynvml.nvmlClocksThrottleReasonGpuIdle | pynvml.nvmlClocksThrottleReasonApplicationsClocksSetting
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCurrentClocksThrottleReasons", lambda handle: reasons)
    assert not monitor._Gpu("x").throttled()


def test_in_a_container_one_unknown_process_is_ourselves(nvml, monkeypatch):
    processes = [types.SimpleNamespace(pid=9_999_999)]
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", lambda handle: processes)
    assert monitor._Gpu("x").foreign_processes() == 0


def test_what_a_gpu_does_not_tell_is_not_known_and_no_failure(nvml, monkeypatch):
    def unsupported(*asked):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    for name in nvml.keys() - {"nvmlInit", "nvmlDeviceGetHandleByUUID"}:
        monkeypatch.setattr(pynvml, name, unsupported)
    watched = Monitor("MIG-x")
    with watched.watching():
        pass
    found = watched.usage()
    assert (found.energy_joules, found.gpu_utilization_percent) == (None, None)
    assert (found.gpu_throttled, found.gpu_foreign_processes) == (False, 0)


@pytest.mark.parametrize(("known", "handle"), [("GPU-1234", "GPU-1234"), ("MIG-1234", "MIG-1234"), ("", None)])
def test_a_gpu_is_found_by_either_name_or_tells_nothing(nvml, monkeypatch, known, handle):
    def of(name):
        if name != known:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return name

    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", of)
    gpu = monitor._Gpu("1234")
    assert gpu._handle == handle
    assert gpu.utilization_percent() == (None if handle is None else 83)


def test_a_gpu_without_nvml_tells_nothing(nvml, monkeypatch):
    def none():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", none)
    assert monitor._Gpu("1234").energy_joules() is None
