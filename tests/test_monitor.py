import os
import types
from dataclasses import replace

import psutil
import pynvml
import pytest
from samples import LAPTOP, make_cell

from rresnet import hardware
from rresnet.quality import flags, monitor
from rresnet.quality.monitor import Monitor, Usage


def usage(**changes):
    values = {
        "seconds": 10.0,
        "cpu_seconds": 20.0,
        "busy_cpu_seconds": 20.5,
        "steal_cpu_seconds": 0.0,
        "major_faults": 0,
        "swapped_bytes": 0,
    }
    return Usage(**{**values, **changes})


def flagged(cell=None, **changes):
    values = {
        "cpu_count": 2,
        "cpu_cores": 2,
        "observed_threads": 2,
        "window_seconds": [1.0, 1.0, 1.0],
        "settled": True,
        "learning": None,
    }
    of_usage = {name: changes.pop(name) for name in list(changes) if name in Usage.__dataclass_fields__}
    return flags.of_trial(usage(**of_usage), cell or make_cell(), **{**values, **changes})


def test_a_quiet_trial_has_no_flag():
    assert flagged() == ()


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"busy_cpu_seconds": 22.1}, "foreign_load"),  # 2.1 of 20 CPU seconds are others'
        ({"steal_cpu_seconds": 1.1}, "steal"),  # of 20
        ({"cpu_seconds": 13.9, "busy_cpu_seconds": 14, "throttled_cpu_seconds": 3.1}, "cpu_starved"),  # 6.1 are missing
        ({"observed_threads": 1, "cpu_seconds": 10.0, "busy_cpu_seconds": 10.0}, "fewer_threads"),
        ({"gpu_foreign_processes": 1}, "gpu_shared"),
        ({"gpu_throttled": True}, "gpu_throttled"),
        ({"major_faults": 1}, "swapping"),
        ({"swapped_bytes": 4096}, "swapping"),
        ({"window_seconds": [1.0]}, "few_windows"),
        ({"window_seconds": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]}, "unsteady"),
        ({"settled": False}, "unsteady"),
        ({"learning": False}, "not_learning"),
    ],
)
def test_each_doubt_is_flagged_alone(changes, flag):
    assert flagged(**changes) == (flag,)
    assert flag in flags.ADVICE


def test_a_gpu_trial_is_not_judged_by_its_processor_time():
    assert flagged(make_cell(device="gpu"), cpu_seconds=1.0, busy_cpu_seconds=1.5, observed_threads=1) == ()


EIGHT = {"cpu_count": 8, "cpu_cores": 8, "observed_threads": 8}


@pytest.mark.parametrize(
    ("changes", "starved"),
    [
        ({"busy_cpu_seconds": 53.0}, False),  # 28 of 80 are missing because one thread makes the input
        ({"busy_cpu_seconds": 65.9}, False),  # 13.9 are others'
        ({"busy_cpu_seconds": 66.1}, True),  # 14.1 are
        ({"busy_cpu_seconds": 60.0, "steal_cpu_seconds": 6.1}, True),
        ({"busy_cpu_seconds": 60.0, "throttled_cpu_seconds": 13.9}, False),
        ({"busy_cpu_seconds": None, "steal_cpu_seconds": None, "throttled_cpu_seconds": 14.1}, True),
        ({"busy_cpu_seconds": None, "steal_cpu_seconds": None}, False),
        ({"busy_cpu_seconds": 132.0, "cpu_count": 16}, False),  # the others' 80 left 80 for the trial
        ({"busy_cpu_seconds": 147.0, "cpu_count": 16}, True),  # 95 left 65
        ({"busy_cpu_seconds": None, "steal_cpu_seconds": None, "cpu_count": 6}, True),  # a quota of 6
        ({"cpu_seconds": 57.0, "busy_cpu_seconds": 80.0}, False),  # 71 % is enough
    ],
)
def test_a_trial_is_starved_where_what_it_misses_was_taken(changes, starved):
    assert ("cpu_starved" in flagged(**{**EIGHT, "cpu_seconds": 52.0, **changes})) is starved


@pytest.mark.parametrize(
    ("foreign", "changes", "loaded"),
    [
        (5.1, {}, True),  # half a core in 10 s: every step waits for the thread that shares its core
        (4.9, {}, False),
        (5.1, {"observed_threads": 15}, False),  # a core is left to it
        (10.1, {"observed_threads": 15}, True),
        (5.1, {"cpu_count": 32}, True),  # the other half of a core that is in use is none to spare
        (5.1, {"cell": make_cell(device="gpu")}, False),
        (5.1, {"cell": make_cell(num_workers=2, num_nodes=2)}, False),  # on two machines
        (10.1, {"cell": make_cell(num_workers=2, num_nodes=2)}, True),
    ],
)
def test_little_foreign_work_is_load_where_no_core_is_left_to_it(foreign, changes, loaded):
    values = {"cpu_count": 16, "cpu_cores": 16, "observed_threads": 16, **changes}
    own = 10.0 * values["observed_threads"]
    found = flagged(**values, cpu_seconds=own, busy_cpu_seconds=own + foreign)
    assert ("foreign_load" in found) is loaded


def test_workers_that_share_the_cores_have_threads_enough():
    cell = make_cell(num_workers=2)
    assert flagged(cell, observed_threads=1, cpu_count=2, cpu_cores=2) == ()
    assert flagged(cell, observed_threads=1, cpu_count=3, cpu_cores=3) == ()  # 3 cores are not shared out evenly
    assert "fewer_threads" in flagged(cell, observed_threads=1, cpu_count=4, cpu_cores=4, cpu_seconds=20.0)


def test_learning_is_judged_only_after_enough_steps():
    assert flags.learns(2.3, [2.5, 2.6], steps=49) is None
    assert flags.learns(2.3, [2.5, 2.6], steps=50) is False
    assert flags.learns(2.3, [2.4, 2.0], steps=50) is True  # the mean, 2.2, is below
    assert flags.learns(2.3, [float("nan")], steps=50) is False


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
