import json
import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from samples import make_cell
from tables import BLOG, GPU, QUIET, TUNED, scaled, side

from rresnet.analysis import diff
from rresnet.analysis.diff_text import render
from rresnet.analysis.statistics import Interval, independent_ratio
from rresnet.cell import UsageError


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
    assert "identical settings came out up to 25.0 % apart;" in render(found, "text")
    gpu = {"gpu_name": "A GPU", "copy": 0}
    b = pd.concat([side((BLOG, scaled(0.95)), run_id="r2"), side((GPU, scaled(0.95)), run_id="r2", **gpu)])
    two = pd.concat([a, side((GPU, QUIET), (replace(GPU, copy=1), scaled(1.01)), gpu_name="A GPU")])
    told = (
        "Noise floor: identical settings came out up to 25.0 % on A CPU, 2 CPUs and 1.0 % on A GPU, A CPU, 2 CPUs apart"
    )
    assert told in render(diff.compare(two, b), "text")


def test_probes_of_batch_sizes_enter_no_ratio_and_are_no_regression_where_something_was_measured():
    a, b = (
        pd.concat(
            [side((BLOG, QUIET), run_id=run), side((TUNED, [probe]), run_id=f"{run}s", experiment="compare-sizes")]
        )
        for run, probe in (("r1", 200.0), ("r2", 100.0))
    )
    slow = side((BLOG, [10.0]), run_id="r1s", experiment="compare-sizes")
    assert verdicts(diff.compare(pd.concat([a, slow]), b)) == {"cpu blog batch 64": "not distinguishable"}
    assert diff.compare(pd.concat([a, slow]), b).changes[0].ok == (6, 6)
    assert verdicts(diff.compare(*(side[side["experiment"] == "compare-sizes"] for side in (a, b)))) == {
        "cpu tuned batch 64": "too few repeats"
    }


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
    text, table = render(found, "text", share=0.05), render(found, "markdown", share=0.05)
    assert re.search(r"^cpu blog batch 64 +A CPU, 2 CPUs +failed$", text, re.MULTILINE)
    assert "Regressions by more than 5 %: cpu blog batch 64 (failed)." in text
    assert "| cpu blog batch 64 | A CPU, 2 CPUs |  |  | failed |" in table
    assert json.loads(render(found, "json"))["changes"][0]["ratio"] is None


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
    assert "of up to 2.5 times the scatter of repeats, and of 8 % at most; more would look like" in render(
        found, "text"
    )
    content = json.loads(render(found, "json", share=0.05))
    assert content["changes"][0]["ratio"] == pytest.approx(0.85)
    assert (content["a"], content["b"], content["regressions"]) == ("old", "new", ["cpu blog batch 64"])


def test_both_sides_say_how_many_trials_they_have_and_how_many_other_work_disturbed():
    a = side((BLOG, QUIET), (TUNED, QUIET))
    a["quality_flags"] = [["cpu_starved"] if repeat == 1 else ["few_windows"] for repeat in a["repeat"]]
    b = side((BLOG, QUIET[:4]), (TUNED, QUIET), run_id="r2", os_version="new").assign(quality_flags=None)
    found = diff.compare(a.assign(os_version="old"), b)
    assert [(change.ok, change.disturbed) for change in found.changes] == [((6, 4), (1, 0)), ((6, 6), (1, 0))]
    text = render(found, "text")
    assert ", A 6, B 4 trials" in text
    assert ", 6 repeats" in text
    assert "Trials that other work disturbed: cpu blog batch 64 (A 1, B 0); cpu tuned batch 64 (A 1, B 0)." in text
    assert "Different in A vs B: os_version: old vs new." in text
    assert "disturbed" not in render(diff.compare(b, b), "text")


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
