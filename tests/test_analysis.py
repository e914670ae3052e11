"""Speedups: what is paired, what is refused, and what they are known to."""

import dataclasses
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from samples import make_cell
from tables import BLOG, GPU, TUNED, trials

import rresnet
from rresnet.analysis import decision, pairing, prediction, rates
from rresnet.analysis.statistics import RATE_DRIFT_LIMIT, Interval, half_width

T2 = 4.302652729911275  # Student's t at 97.5 %, 2 degrees of freedom


def test_speedup_is_the_geometric_mean_of_paired_ratios():
    # Ratios 2, 4, 8: the geometric mean is 4. The drift doubles both cells in repeat 1 and cancels.
    table = trials((BLOG, [100.0, 200.0, 100.0]), (TUNED, [200.0, 800.0, 800.0]))
    found = rresnet.speedup(table, over="recipe", reference="blog")
    assert len(found) == 1
    row = found.iloc[0]
    assert row["speedup"] == pytest.approx(4)
    assert row["pairs"] == 3
    # Logs ln 2, 2 ln 2, 3 ln 2: the t interval alone reaches T2 ln 2 / sqrt 3 to each side, so the whole at least that.
    assert math.log(row["high"] / row["speedup"]) >= T2 * math.log(2) / math.sqrt(3)
    assert row["low"] * row["high"] == pytest.approx(16)


def test_a_repeat_without_its_partner_is_left_out():
    table = trials((BLOG, [100.0, 100.0, 100.0, 100.0]), (TUNED, [200.0, None, 200.0, 200.0]))
    row = rresnet.speedup(table, over="recipe", reference="blog").iloc[0]
    assert (row["speedup"], row["pairs"]) == (pytest.approx(2), 3)


def test_under_three_pairs_no_interval_is_claimed():
    row = rresnet.speedup(
        trials((BLOG, [100.0, 100.0]), (TUNED, [200.0, 200.0])), over="recipe", reference="blog"
    ).iloc[0]
    assert row["speedup"] == pytest.approx(2)
    assert row[["low", "high", "distinguishable"]].isna().all()


def test_only_ok_rows_enter():
    table = pd.concat(
        [trials((BLOG, [100.0] * 4), (TUNED, [200.0] * 3)), trials((TUNED, [None] * 3 + [900.0]), status="error")]
    )
    assert rresnet.speedup(table, over="recipe", reference="blog").iloc[0]["speedup"] == pytest.approx(2)


def test_pairs_never_cross_runs_or_machines():
    one, other = trials((BLOG, [100.0] * 3)), trials((TUNED, [200.0] * 3), hostname="other")
    with pytest.raises(ValueError, match=r"no rows to compare: they differ in hostname \(other against vm\)"):
        rresnet.speedup(pd.concat([one, other]), over="recipe", reference="blog")
    later = trials((TUNED, [200.0] * 3), run_id="r2")
    with pytest.raises(ValueError, match=r"they differ in run_id \(r2 against r1\)"):
        rresnet.speedup(pd.concat([one, later]), over="recipe", reference="blog")


def test_pairs_of_several_runs_and_machines_go_together():
    parts = [trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3), run_id=r, hostname=h) for r in "ab" for h in "xy"]
    row = rresnet.speedup(pd.concat(parts), over="recipe", reference="blog").iloc[0]
    assert (row["speedup"], row["pairs"]) == (pytest.approx(2), 12)


def test_what_recipes_resolve_may_differ_between_devices_and_is_named():
    found = rresnet.speedup(trials((BLOG, [100.0] * 3), (GPU, [3000.0] * 3)), over="device", reference="cpu")
    assert found.iloc[0]["speedup"] == pytest.approx(30)
    assert "precision: tf32 vs fp32" in found.iloc[0]["differs"]


def test_unlike_threads_are_refused_by_name_unless_allowed():
    cells = BLOG, make_cell(batch_size=64, device="gpu", precision="tf32", cpu_threads=16)
    table = trials((cells[0], [100.0] * 3), (cells[1], [3000.0] * 3))
    with pytest.raises(ValueError, match=r"they differ in cpu_threads \(16 against 2\)"):
        rresnet.speedup(table, over="device", reference="cpu")
    found = rresnet.speedup(table, over="device", reference="cpu", allow=("cpu_threads",)).iloc[0]
    assert found["speedup"] == pytest.approx(30)
    assert "cpu_threads: 16 vs 2" in found["differs"]


def test_unlike_software_and_data_are_refused_by_name_unless_allowed():
    table = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)).assign(torch_version=["2.11"] * 3 + ["2.15"] * 3)
    with pytest.raises(ValueError, match=r'different torch_version \(2\.15 and 2\.11\).*allow=\("torch_version",\)'):
        rresnet.speedup(table, over="recipe", reference="blog")
    assert len(rresnet.speedup(table, over="recipe", reference="blog", allow=("torch_version",))) == 1
    older = table.assign(torch_version=["2.11"] * 3 + [None] * 3)  # rows of a version that did not record it
    assert len(rresnet.speedup(older, over="recipe", reference="blog")) == 1


def test_workers_that_share_the_cores_may_be_compared():
    one, two = make_cell(num_workers=1, cpu_threads=4), make_cell(num_workers=2, cpu_threads=2)
    found = rresnet.speedup(trials((one, [100.0] * 3), (two, [150.0] * 3)), over="num_workers", reference=1)
    assert found.iloc[0]["speedup"] == pytest.approx(1.5)
    assert "cpu_threads: 2 vs 4" in found.iloc[0]["differs"]


def test_what_a_repeat_and_a_process_add_is_told():
    ratios = [2.0, 2.2, 2.0, 2.2, 2.6, 2.8, 2.6, 2.8]
    table = trials((BLOG, [100.0] * 8), (TUNED, [100 * r for r in ratios])).assign(process=lambda t: t["repeat"] // 4)
    row = rresnet.speedup(table, over="recipe", reference="blog").iloc[0]
    assert 0.04 < row["repeat_sd"] < 0.06  # half of ln 1.1, and of ln 1.077
    assert row["process_sd"] == pytest.approx(math.log(2.7 / 2.1) / math.sqrt(2), abs=0.03)


def test_an_axis_that_was_asked_for_is_matched():
    cells = [make_cell(batch_size=64, recipe=r, precision=p) for r in ("blog", "tuned") for p in ("fp32", "bf16")]
    table = trials(*zip(cells, ([100.0] * 3, [150.0] * 3, [200.0] * 3, [600.0] * 3), strict=True))
    found = rresnet.speedup(table, over="recipe", reference="blog").set_index("precision")["speedup"]
    assert found.to_dict() == {"fp32": pytest.approx(2), "bf16": pytest.approx(4)}


def test_wrong_questions_name_what_is_valid():
    table = trials((BLOG, [100.0] * 3))
    with pytest.raises(ValueError, match=r"over must be one of device, recipe, .*, got 'colour'"):
        rresnet.speedup(table, over="colour", reference="red")
    with pytest.raises(ValueError, match=r"no ok rows with device = 'gpu'; there are: cpu"):
        rresnet.speedup(table, over="device", reference="gpu")


def test_what_there_is_only_the_reference_of_is_told():
    table = trials((BLOG, [100.0] * 3))
    for ask in (rresnet.speedup, rresnet.speedup_across_machines):
        with pytest.raises(ValueError, match=r"nothing to compare: 'cpu' is the only device with ok rows"):
            ask(table, over="device", reference="cpu")


DTYPES = {
    "numpy's nullable": lambda table: table.convert_dtypes(),
    "pyarrow's": lambda table: table.convert_dtypes(dtype_backend="pyarrow"),
    "categories": lambda table: table.astype(dict.fromkeys(["run_id", "hostname", "device", "status"], "category")),
}


@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=DTYPES)
def test_rows_in_any_dtypes_give_the_same(dtypes):
    cells = (BLOG, [100.0, 101.0, 99.0]), (GPU, [300.0, 306.0, 309.0])
    table = pd.concat([trials(*cells), trials(*cells, run_id="r2", hostname="other")], ignore_index=True)
    table["started_at"] = pd.Timestamp("2026-11-01", tz="UTC")
    for ask in (rresnet.speedup, rresnet.speedup_across_machines):
        expected = ask(table, over="device", reference="cpu")
        pd.testing.assert_frame_equal(ask(dtypes(table), over="device", reference="cpu"), expected)
    assert decision.verdicts(dtypes(table)) == decision.verdicts(table)
    pd.testing.assert_frame_equal(prediction.fit(dtypes(table)), prediction.fit(table))


@pytest.mark.parametrize("hostnames", [[None] * 6, [None, "vm", "vm"] * 2])
def test_rows_that_do_not_tell_their_machine_are_paired_all_the_same(hostnames):
    table = trials((BLOG, [100.0] * 3), (GPU, [300.0] * 3)).assign(hostname=hostnames)
    assert rresnet.speedup(table, over="device", reference="cpu")["pairs"].tolist() == [3]


def test_one_name_may_be_allowed_without_brackets():
    table = trials((BLOG, [100.0] * 3), (GPU, [300.0] * 3)).assign(cpu_model=["A"] * 3 + ["B"] * 3)
    assert len(rresnet.speedup(table, over="device", reference="cpu", allow="cpu_model")) == 1
    with pytest.raises(ValueError, match="different cpu_model"):
        rresnet.speedup(table, over="device", reference="cpu")
    with pytest.raises(ValueError, match="allow must name columns of the trials: there is no cpu_models"):
        rresnet.speedup(table, over="device", reference="cpu", allow="cpu_models")


def test_what_is_no_table_of_trials_is_told_by_name():
    with pytest.raises(TypeError, match=r"rresnet\.read\(\.\.\.\)\.trials, got tuple"):
        rresnet.speedup((), over="device", reference="cpu")
    with pytest.raises(TypeError, match=r"as decision\.prices reads them, got 'cpu=1/h'"):
        decision.costs(trials((BLOG, [100.0])), ["cpu=1/h"])
    assert decision.prices("cpu=1/h") == decision.prices(["cpu=1/h"])


def test_the_distinguishable_rows_can_be_chosen_though_some_have_no_interval():
    table = trials((BLOG, [100.0, 101.0, 99.0]), (GPU, [300.0, 300.0, 301.0]))
    other = trials((replace(BLOG, batch_size=8), [100.0]), (replace(GPU, batch_size=8), [300.0]))
    found = rresnet.speedup(pd.concat([table, other]), over="device", reference="cpu")
    assert len(found) == 2
    assert found[found["distinguishable"].eq(True)]["batch_size"].tolist() == [64]


def test_rows_without_the_column_copy_are_compared_across_machines():
    table = pd.concat([trials((BLOG, [100.0] * 3), hostname="a"), trials((GPU, [300.0] * 3), hostname="b")])
    found = rresnet.speedup_across_machines(table.drop(columns="copy"), over="device", reference="cpu")
    assert found["speedup"].tolist() == pytest.approx([3])


def test_distinguishable_means_that_one_is_outside():
    assert Interval(estimate=1.2, low=1.1, high=1.3, count=3).distinguishable is True
    assert Interval(estimate=1.2, low=0.9, high=1.5, count=3).distinguishable is False
    assert Interval(estimate=1.2, low=None, high=None, count=2).distinguishable is None


def test_read_without_results_says_what_to_do(tmp_path):
    with pytest.raises(rresnet.StoreError, match=r"no results in .*nothing.*run python experiments/compare\.py first"):
        rresnet.read(tmp_path / "nothing")


def test_unknown_public_names_say_which_there_are():
    with pytest.raises(
        AttributeError, match="it has StoreError, Tables, __version__, read, speedup, speedup_across_machines"
    ):
        rresnet.speedups  # noqa: B018
    assert all(hasattr(rresnet, name) for name in rresnet.__all__)


def test_durations_are_predicted_from_earlier_trials():
    """BLOG: first trial 9 s, of them 1 s measured, the others 3 s and 5 s; 100 images/s. TUNED: one trial of 4 s."""
    start = pd.Timestamp("2026-01-01", tz="UTC")
    table = trials((BLOG, [100.0] * 3), (TUNED, [300.0]))
    table["process"] = 0
    table["started_at"] = [start + pd.Timedelta(minutes=minute) for minute in (0, 1, 2, 3)]
    table["finished_at"] = table["started_at"] + pd.to_timedelta([9, 3, 5, 4], unit="s")
    table["measured_seconds"] = 1.0
    new = dataclasses.replace(BLOG, batch_size=3000)  # a step at 150 images/s, the mean of all: 20 s
    other = dataclasses.replace(BLOG, model="resnet18")
    assert rates.trial_seconds(table, [BLOG, TUNED, new, other], 2.0) == {
        BLOG.cell_id: (10.0, 5.0),
        TUNED.cell_id: (5.0, 5.0),
        new.cell_id: (20.0 + 5.5, 20.0 + 3.0),
    }
    assert rates.trial_seconds(table, [dataclasses.replace(BLOG, epochs=2)], 2.0) == {}
    assert rates.trial_seconds(table[:0], [BLOG], 2.0) == {}


def test_a_rate_is_given_more_drift_than_a_ratio():
    values = [100.0, 110.0, 90.0]
    row = rates.by_cell(trials((BLOG, values))).iloc[0]
    half = half_width(np.log(values), 3, drift_limit=RATE_DRIFT_LIMIT)
    assert math.log(row["high"] / row["low"]) == pytest.approx(2 * half)
    assert half > half_width(np.log(values), 3)


def test_rows_tell_how_fast_their_repeats_followed_one_another():
    table = trials((BLOG, [100.0, 110.0, 90.0, 105.0] * 3), (TUNED, [200.0] * 12))
    start, widths = pd.Timestamp("2026-01-01", tz="UTC"), []
    for seconds in (60.0, 1.0):
        timed = table.assign(started_at=start + pd.to_timedelta(seconds * table["repeat"], unit="s"))
        rate = rates.by_cell(timed).set_index("cell_id").loc[BLOG.cell_id]
        ratio = rresnet.speedup(timed, over="recipe", reference="blog").iloc[0]
        paired = pairing.ratio(timed, TUNED.cell_id, BLOG.cell_id)
        assert ratio["low"] == pytest.approx(paired.low)
        widths.append([rate["high"] / rate["low"], ratio["high"] / ratio["low"]])
    assert (np.array(widths[1]) > 1.005 * np.array(widths[0])).all()


def test_analysis_needs_neither_ray_nor_torch():
    code = (
        "import sys, rresnet.analysis.diff, rresnet.analysis.answer; sys.exit(bool({'ray', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_rows_that_tell_no_epoch_have_a_rate_all_the_same():
    (found,) = rates.by_cell(trials((BLOG, [100.0] * 3)).assign(epoch_seconds=None)).to_dict("records")
    assert found["images_per_second"] == pytest.approx(100)
    assert pd.isna(found["epoch_low"])
