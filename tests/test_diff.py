import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from samples import make_cell
from tables import BLOG, GPU, TUNED, trials

import rresnet
from rresnet.analysis import diff, unpaired
from rresnet.analysis.diff_text import render
from rresnet.analysis.statistics import Interval, independent_ratio
from rresnet.cell import UsageError

QUIET = [100.0, 101.0, 99.0, 100.5, 99.5, 100.0]


def scaled(factor):
    return [rate * factor for rate in QUIET]


def side(*cells_and_rates, run_id="r1", **columns):
    return trials(*cells_and_rates, run_id=run_id).assign(**{"cpu_model": "A CPU", "cpu_count": 2, **columns})


def verdicts(found):
    return {change.setting: change.verdict for change in found.changes}


def test_the_ratio_of_two_means_takes_both_widths():
    # Half-widths 0.3 and 0.4 in logs: 0.5 together.
    one = Interval(estimate=6.0, low=6 / math.exp(0.3), high=6 * math.exp(0.3), count=12)
    other = Interval(estimate=3.0, low=3 / math.exp(0.4), high=3 * math.exp(0.4), count=6)
    found = independent_ratio(one, other)
    assert (found.estimate, found.count) == (2.0, 6)
    assert (found.low, found.high) == (pytest.approx(2 / math.exp(0.5)), pytest.approx(2 * math.exp(0.5)))
    assert found.bounds == (found.low, found.high)
    back = independent_ratio(other, one)
    assert back.low == pytest.approx(1 / found.high)
    unbounded = Interval(estimate=0.5, low=None, high=None, count=2)
    assert independent_ratio(one, unbounded) == Interval(estimate=one.estimate / 0.5, low=None, high=None, count=2)


def test_the_same_code_twice_is_not_distinguishable():
    a = side((BLOG, QUIET), (TUNED, scaled(2)))
    found = diff.compare(a, side((BLOG, scaled(1.01)), (TUNED, scaled(1.98)), run_id="r2"))
    assert verdicts(found) == {"cpu blog batch 64": "not distinguishable", "cpu tuned batch 64": "not distinguishable"}
    assert not found.regressions(0.0)


def test_a_slowdown_is_worse_and_a_speedup_better():
    found = diff.compare(
        side((BLOG, QUIET), (TUNED, QUIET)), side((BLOG, scaled(0.85)), (TUNED, scaled(1.2)), run_id="r2")
    )
    assert verdicts(found) == {"cpu blog batch 64": "worse", "cpu tuned batch 64": "better"}
    slower = found.changes[0]
    assert slower.ratio == pytest.approx(0.85)
    assert slower.high < 1
    assert [c.setting for c in found.regressions(0.05)] == ["cpu blog batch 64"]
    assert found.regressions(0.20) == []  # slower, but not by more than that


def test_the_more_settings_there_are_the_surer_a_regression_has_to_be():
    # 6 % slower is told of one setting (the interval ends at 0.986), of one of 12 it may be chance, of all 12 hardly.
    settings = [replace(BLOG, batch_size=size) for size in range(1, 13)]
    a = side(*((one, QUIET) for one in settings))
    one_slower = side((settings[0], scaled(0.94)), *((one, QUIET) for one in settings[1:]), run_id="r2")
    found = diff.compare(a, one_slower)
    assert [setting for setting, verdict in verdicts(found).items() if verdict == "worse"] == ["cpu blog batch 1"]
    assert found.regressions(0.05) == []
    assert "this may be chance: cpu blog batch 1." in render(found, "text", share=0.05)
    alone = diff.compare(a[a["batch_size"] == 1], one_slower[one_slower["batch_size"] == 1])
    assert len(alone.regressions(0.05)) == 1
    all_slower = diff.compare(a, side(*((one, scaled(0.94)) for one in settings), run_id="r2"))
    assert len(all_slower.regressions(0.05)) == 12
    assert "maybe by chance" not in render(all_slower, "text", share=0.05)


def test_a_side_of_a_single_process_is_told():
    a, b = side((BLOG, QUIET), (TUNED, QUIET)), side((BLOG, QUIET), (TUNED, QUIET), run_id="r2")
    assert "single process" not in render(diff.compare(a, b), "text")
    assert "One side ran in a single process" in render(diff.compare(a, b.assign(process=0)), "text")
    b.loc[b["recipe"] == "tuned", "process"] = 0
    assert "One side of cpu tuned batch 64 ran in a single process" in render(diff.compare(a, b), "markdown")


def test_what_pairs_could_tell_two_runs_cannot():
    # 5 % in every repeat of a noisy machine: side by side that is told, of two runs it is not.
    noisy = [100.0, 130.0, 80.0, 110.0, 90.0, 120.0]
    found = diff.compare(side((BLOG, noisy)), side((BLOG, [r * 0.95 for r in noisy]), run_id="r2"))
    assert verdicts(found) == {"cpu blog batch 64": "not distinguishable"}


def test_the_noise_floor_is_that_of_identical_cells():
    copy = make_cell(batch_size=64, copy=1)
    a = side((BLOG, QUIET), (copy, scaled(1.25)))
    found = diff.compare(a, side((BLOG, scaled(0.85)), run_id="r2"))
    assert verdicts(found) == {"cpu blog batch 64": "not distinguishable"}
    assert found.changes[0].floor == pytest.approx(0.25)
    assert "identical settings came out up to 25.0 % apart" in render(found, "text")


def test_few_repeats_claim_nothing():
    found = diff.compare(side((BLOG, QUIET)), side((BLOG, [50.0, 50.0]), run_id="r2"))
    assert verdicts(found) == {"cpu blog batch 64": "too few repeats"}
    assert found.changes[0].low is None


def test_what_no_longer_trains_is_a_regression():
    whole = side((BLOG, QUIET), (TUNED, QUIET), run_id="r2")
    whole.loc[whole["recipe"] == "blog", ["status", "images_per_second"]] = ["out_of_memory", math.nan]
    found = diff.compare(side((BLOG, QUIET), (TUNED, QUIET)), whole)
    assert verdicts(found) == {"cpu blog batch 64": "failed", "cpu tuned batch 64": "not distinguishable"}
    assert [c.setting for c in found.regressions(0.05)] == ["cpu blog batch 64"]
    assert verdicts(diff.compare(whole, side((BLOG, QUIET), (TUNED, QUIET))))["cpu blog batch 64"] == "ok now"
    assert verdicts(diff.compare(whole, whole))["cpu blog batch 64"] == "failed in both"


def test_what_was_killed_did_not_tell_its_machine_and_is_a_regression_all_the_same():
    a = side((BLOG, QUIET), (TUNED, QUIET), dataset_fingerprint="data")
    b = side((BLOG, QUIET), (TUNED, QUIET), run_id="r2", dataset_fingerprint="data")
    lost = b["recipe"] == "blog"
    b.loc[lost, ["status", "images_per_second", "cpu_model", "cpu_count", "dataset_fingerprint"]] = ["killed"] + [
        None
    ] * 4
    assert verdicts(diff.compare(a, b)) == {"cpu blog batch 64": "failed", "cpu tuned batch 64": "not distinguishable"}


@pytest.mark.parametrize("untold", [["dataset_fingerprint"], ["cpu_model", "cpu_count", "dataset_fingerprint"]])
def test_a_side_in_which_everything_fails_is_compared_all_the_same(untold):
    whole = side((BLOG, QUIET), (TUNED, QUIET), dataset_fingerprint="data")
    gone = side((BLOG, QUIET), (TUNED, QUIET), run_id="r2").assign(
        status="error", images_per_second=math.nan, **{"dataset_fingerprint": "data", **dict.fromkeys(untold)}
    )
    found = diff.compare(whole, gone)
    assert verdicts(found) == {"cpu blog batch 64": "failed", "cpu tuned batch 64": "failed"}
    assert len(found.regressions(0.05)) == 2
    assert {change.machine for change in found.changes} == {"A CPU, 2 CPUs"}
    assert set(verdicts(diff.compare(gone, whole)).values()) == {"ok now"}
    assert set(verdicts(diff.compare(gone, gone)).values()) == {"failed in both"}
    kinds = pd.concat([whole, whole.assign(dataset_fingerprint="other", cpu_model="B CPU")])
    with pytest.raises(UsageError, match="nothing was measured in both"):  # of which of them is not known
        diff.compare(kinds, gone)


@pytest.mark.parametrize("untold", [["dataset_fingerprint"], ["cpu_model", "cpu_count"]])
def test_what_ended_ok_and_tells_no_data_or_machine_is_not_said_to_be_the_other_sides(untold):
    a, b = (side((BLOG, QUIET), run_id=run, dataset_fingerprint="data") for run in ("r1", "r2"))
    with pytest.raises(UsageError, match="nothing was measured in both"):
        diff.compare(a, b.assign(**dict.fromkeys(untold)))


def test_a_device_whose_trials_are_all_killed_is_compared_on_the_same_processor_alone():
    gpu = {"gpu_name": "A GPU", "dataset_fingerprint": "data"}
    a = pd.concat([side((BLOG, QUIET), dataset_fingerprint="data"), side((GPU, QUIET), **gpu)])
    lost = side((GPU, QUIET), run_id="r2", status="killed", **dict.fromkeys(("cpu_model", "cpu_count")))
    b = pd.concat([side((BLOG, QUIET), run_id="r2", dataset_fingerprint="data"), lost])
    assert verdicts(diff.compare(a, b))["gpu blog batch 64 tf32"] == "failed"
    elsewhere = pd.concat([a, side((BLOG, QUIET), run_id="r3", cpu_model="B CPU", dataset_fingerprint="data")])
    found = diff.compare(elsewhere, b.assign(cpu_model=b["cpu_model"].replace("A CPU", "B CPU")))
    assert verdicts(found) == {"cpu blog batch 64 fp32": "not distinguishable"}


def test_sizes_that_differ_are_named_in_their_order_on_one_cpu():
    a = side(*((make_cell(batch_size=size), QUIET) for size in (32, 8, 256)), cpu_count=1)
    b = side((BLOG, QUIET), run_id="r2", cpu_count=1)
    with pytest.raises(UsageError, match="batch_size: 8 and 32 and 256 vs 64"):
        diff.compare(a, b)
    assert diff._machine(b) == "A CPU, 1 CPU"


def test_unmatched_rows_and_what_differs_are_named():
    other = make_cell(batch_size=32)
    a = side((BLOG, QUIET), (other, QUIET), torch_version="2.11", hostname="one")
    b = side((BLOG, QUIET), (TUNED, QUIET), run_id="r2", torch_version="2.15", hostname="two")
    found = diff.compare(a, b)
    assert found.only_a == ("cpu blog batch 32 (A CPU, 2 CPUs)",)
    assert found.only_b == ("cpu tuned batch 64 (A CPU, 2 CPUs)",)
    assert found.differs == ("hostname: one vs two", "torch_version: 2.11 vs 2.15")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"cpu_model": "B CPU"}, "they differ in cpu_model: A CPU vs B CPU"),
        ({"dataset_fingerprint": "other"}, "they differ in dataset_fingerprint: data vs other"),
    ],
)
def test_another_machine_or_other_data_are_not_compared(columns, message):
    a = side((BLOG, QUIET), dataset_fingerprint="data")
    b = side((BLOG, QUIET), run_id="r2", **{"dataset_fingerprint": "data", **columns})
    with pytest.raises(UsageError, match=f"nothing was measured in both A and B: {message}"):
        diff.compare(a, b)


def test_runs_of_two_commits_are_not_averaged():
    a = pd.concat([side((BLOG, QUIET), git_commit="aaa"), side((BLOG, QUIET), run_id="r2", git_commit="bbb")])
    with pytest.raises(UsageError, match=r"x holds runs with different git_commit.*x@RUN_ID.*r1 \(commit aaa\); r2"):
        diff.compare(a, side((BLOG, QUIET), run_id="r3", git_commit="ccc"), names=("x", "y"))


def test_formats_hold_the_same():
    found = diff.compare(side((BLOG, QUIET)), side((BLOG, scaled(0.85)), run_id="r2"), names=("old", "new"))
    assert "cpu blog batch 64  A CPU, 2 CPUs  0.85   " in render(found, "text", share=0.05)
    assert "Regressions by more than 5 %: cpu blog batch 64 (worse, 0.85)." in render(found, "text", share=0.05)
    assert "| cpu blog batch 64 | A CPU, 2 CPUs | 0.85 |" in render(found, "markdown")
    assert "of up to 2.5 times the scatter of repeats, and of 8 % at most; not for more." in render(found, "text")
    content = json.loads(render(found, "json", share=0.05))
    assert content["changes"][0]["ratio"] == pytest.approx(0.85)
    assert (content["a"], content["b"], content["regressions"]) == ("old", "new", ["cpu blog batch 64"])


def test_machines_are_compared_unpaired_when_asked():
    laptop = side((BLOG, QUIET), hostname="laptop")
    cluster = side((GPU, scaled(30)), run_id="r2", hostname="cluster", gpu_name="NVIDIA A100", cpu_model="B CPU")
    both = pd.concat([laptop, cluster])
    row = unpaired.speedup_across_machines(both, over="device", reference="cpu").iloc[0]
    assert (row["machine"], row["reference_machine"], row["repeats"]) == ("cluster", "laptop", 6)
    assert row["speedup"] == pytest.approx(30)
    assert row["distinguishable"]
    for told in (
        "precision: tf32 vs fp32",
        "hostname: cluster vs laptop",
        "cpu_model: B CPU vs A CPU",
        "gpu_name: NVIDIA",
    ):
        assert told in row["differs"]
    with pytest.raises(ValueError, match="no rows to compare"):  # paired stays the default
        rresnet.speedup(both, over="device", reference="cpu")


def test_code_that_two_machines_do_not_share_is_told():
    here, there = trials((BLOG, [100.0] * 3), hostname="here"), trials((GPU, [400.0] * 3), hostname="there")
    found = [
        unpaired.speedup_across_machines(
            pd.concat([here.assign(git_commit="aaa"), there.assign(git_commit=commit)]), over="device", reference="cpu"
        )["differs"].item()
        for commit in ("aaa", "bbb", None)
    ]
    assert ["git_commit: bbb vs aaa" in differs for differs in found] == [False, True, False]


def test_unlike_software_across_machines_is_refused_by_name_unless_allowed():
    laptop = side((BLOG, QUIET), hostname="laptop", torch_version="2.11")
    both = pd.concat([laptop, side((GPU, QUIET), run_id="r2", hostname="cluster", torch_version="2.15")])
    with pytest.raises(ValueError, match=r'different torch_version \(2\.15 vs 2\.11\).*allow=\("torch_version",\)'):
        unpaired.speedup_across_machines(both, over="device", reference="cpu")
    found = unpaired.speedup_across_machines(both, over="device", reference="cpu", allow=("torch_version",))
    assert "torch_version: 2.15 vs 2.11" in found.iloc[0]["differs"]
    threads = both.assign(torch_version="2.15", cpu_threads=[2] * 6 + [8] * 6)
    with pytest.raises(ValueError, match=r"they differ in cpu_threads \(8 against 2\)"):
        unpaired.speedup_across_machines(threads, over="device", reference="cpu")


def test_one_machine_is_left_to_pairs():
    with pytest.raises(ValueError, match=r"all rows ran on one machine.*use rresnet\.speedup"):
        unpaired.speedup_across_machines(side((BLOG, QUIET), (GPU, QUIET)), over="device", reference="cpu")


def test_two_machines_of_one_hostname_are_told_by_their_processors():
    one = side((BLOG, QUIET))
    other = side((GPU, scaled(2)), run_id="r2", cpu_model="B CPU", gpu_name="NVIDIA A100")
    (row,) = unpaired.speedup_across_machines(pd.concat([one, other]), "device", "cpu").to_dict("records")
    assert (row["machine"], row["reference_machine"], row["speedup"]) == ("vm", "vm", pytest.approx(2))
    assert "cpu_model: B CPU vs A CPU" in row["differs"]
    for unknown in (None, "A CPU"):
        alike = pd.concat([one, other.assign(cpu_model=unknown)])
        with pytest.raises(ValueError, match=r"all rows ran on one machine.*give the rows of one of them another"):
            unpaired.speedup_across_machines(alike, "device", "cpu")
    with pytest.raises(ValueError, match=r"run_id \(r2 against r1\) \(of two machines: rresnet\.speedup_across"):
        rresnet.speedup(alike, "device", "cpu")


def test_the_noise_floor_holds_across_machines_and_copies_are_no_settings():
    again = replace(BLOG, copy=1)
    laptop = side((BLOG, QUIET), (again, scaled(1.4)), hostname="laptop")
    cluster = side((GPU, scaled(1.2)), run_id="r2", hostname="cluster")
    (row,) = unpaired.speedup_across_machines(pd.concat([laptop, cluster]), "device", "cpu").to_dict("records")
    assert row["speedup"] == pytest.approx(1.2)
    assert row["distinguishable"] is False
    (row,) = unpaired.speedup_across_machines(
        pd.concat([laptop[laptop["copy"] == 0], cluster]), "device", "cpu"
    ).to_dict("records")
    assert row["distinguishable"] is True


def test_what_fails_mostly_since_is_a_regression():
    b = side((BLOG, QUIET), (TUNED, QUIET), run_id="r2")
    b.loc[(b["recipe"] == "blog") & (b["repeat"] > 0), ["status", "images_per_second"]] = ["error", math.nan]
    found = diff.compare(side((BLOG, QUIET), (TUNED, QUIET)), b)
    assert verdicts(found)["cpu blog batch 64"] == "failed"
    assert verdicts(diff.compare(b, b))["cpu blog batch 64"] != "failed"  # it did before
    gone = b.assign(status=b["status"].where(b["recipe"] != "blog", "error"))
    assert verdicts(diff.compare(b, gone))["cpu blog batch 64"] == "failed"


def test_settings_of_two_data_sets_have_names_of_their_own():
    other = replace(BLOG, dataset="photos")
    found = diff.compare(side((BLOG, QUIET), (other, QUIET)), side((BLOG, QUIET), (other, scaled(0.5)), run_id="r2"))
    assert verdicts(found)["cpu blog batch 64 dataset photos"] == "worse"
    assert "Regressions by more than 2.5 %: cpu blog batch 64 dataset photos" in render(found, "text", share=0.025)
