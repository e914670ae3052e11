"""What makes a row doubtful."""

import pytest
from samples import make_cell

from rresnet.quality import flags
from rresnet.quality.monitor import Usage


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


EIGHT = {"cpu_count": 8, "cpu_cores": 8, "observed_threads": 8}


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
