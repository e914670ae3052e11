import io
import math
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from samples import make_cell

import rresnet
from rresnet.analysis import answer, pairing, ranking, rates, statistics
from rresnet.analysis.statistics import RATE_DRIFT_LIMIT, Interval, half_width
from rresnet.tables.measurement import TRIALS
from rresnet.terminal import number

T2 = 4.302652729911275  # Student's t at 97.5 %, 2 degrees of freedom


def trials(*cells_and_rates, run_id="r1", hostname="vm", status="ok"):
    """Rows of a trials table: (cell, rates by repeat); a rate of None is a repeat that is missing."""
    rows = []
    for cell, values in cells_and_rates:
        for repeat, rate in enumerate(values):
            if rate is not None:
                rows.append(
                    {
                        **asdict(cell),
                        "cell_id": cell.cell_id,
                        "run_id": run_id,
                        "hostname": hostname,
                        "repeat": repeat,
                        "process": repeat,
                        "status": status,
                        "images_per_second": rate,
                        "epoch_seconds": 10_000 / rate,
                        "epoch_seconds_kind": "projected",
                        "test_accuracy": None,
                    }
                )
    return pd.DataFrame(rows).reindex(columns=[f.name for f in TRIALS])


BLOG = make_cell(batch_size=64)
TUNED = make_cell(batch_size=64, recipe="tuned", precision="bf16", input="resident", channels_last=True)
GPU = make_cell(batch_size=64, device="gpu", precision="tf32")


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
    with pytest.raises(ValueError, match=r'unlike torch_version \(2\.15 and 2\.11\).*allow=\("torch_version",\)'):
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


def test_distinguishable_means_that_one_is_outside():
    assert pairing.distinguishable(Interval(estimate=1.2, low=1.1, high=1.3, count=3)) is True
    assert pairing.distinguishable(Interval(estimate=1.2, low=0.9, high=1.5, count=3)) is False
    assert pairing.distinguishable(Interval(estimate=1.2, low=None, high=None, count=2)) is None


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
    start = pd.Timestamp("2026-01-01", tz="UTC")
    table = trials((BLOG, [1.0] * 3), (TUNED, [1.0]))
    table["started_at"] = start
    table["finished_at"] = [start + pd.Timedelta(seconds=s) for s in (1, 2, 9, 4)]
    assert rates.trial_seconds(table, [BLOG.cell_id, TUNED.cell_id, "new"]) == {
        BLOG.cell_id: 2.0,
        TUNED.cell_id: 4.0,
        "new": 3.0,
    }
    assert rates.trial_seconds(table[:0], ["new"]) == {}


def test_a_rate_is_given_more_drift_than_a_ratio():
    values = [100.0, 110.0, 90.0]
    row = rates.by_cell(trials((BLOG, values))).iloc[0]
    half = half_width(np.log(values), 3, drift_limit=RATE_DRIFT_LIMIT)
    assert math.log(row["high"] / row["low"]) == pytest.approx(2 * half)
    assert half > half_width(np.log(values), 3)


def test_what_the_others_are_compared_with_is_the_blogs_setting_as_written():
    changed = make_cell(batch_size=64, input="resident", channels_last=True)
    cells = rates.by_cell(trials((changed, [300.0] * 3), (BLOG, [100.0] * 3), (TUNED, [200.0] * 3)))
    assert ranking.reference_cell(cells.to_dict("records"))["cell_id"] == BLOG.cell_id


def printed(table):
    console = Console(width=140, record=True, file=io.StringIO())
    answer.findings(table, console)
    answer.remarks(table, console)
    return console.export_text()


def test_the_answer_names_the_fastest_and_by_how_much():
    text = printed(trials((BLOG, [100.0, 101.0, 99.0, 100.0]), (TUNED, [200.0, 202.0, 198.0, 200.0])))
    assert "Fastest: cpu tuned batch 64, 200 images/s. That is 2.00x the second, cpu blog batch 64" in text
    assert "4 pairs): distinguishable." in text
    assert "No GPU was measured" in text
    assert "--address HOST:6379" in text


def test_the_answer_does_not_claim_what_it_can_not_tell():
    noisy = printed(trials((BLOG, [100.0, 160.0, 80.0]), (TUNED, [120.0, 100.0, 110.0])))
    assert "not distinguishable" in noisy
    few = printed(trials((BLOG, [100.0]), (TUNED, [200.0])))
    assert "Under 3 repeats there is no interval" in few


def test_a_speedup_that_can_not_be_told_from_1_is_marked():
    large = make_cell(batch_size=256)
    text = printed(trials((BLOG, [100.0] * 3), (TUNED, [200.0, 201.0, 199.0]), (large, [120.0, 100.0, 110.0])))
    (clear,) = (line for line in text.splitlines() if line.startswith("  cpu tuned"))
    (noisy,) = (line for line in text.splitlines() if line.startswith("  cpu blog batch 256"))
    assert " 2.00 (" in clear
    assert "~" not in clear
    assert " ~ 1.10 (" in noisy
    assert "~: not distinguishable from the reference." in text
    assert "~" not in printed(trials((BLOG, [100.0] * 3), (TUNED, [200.0, 201.0, 199.0])))
    assert "~" not in printed(trials((BLOG, [100.0]), (TUNED, [101.0])))  # no interval, no verdict


def test_a_ratio_within_the_noise_floor_is_marked():
    identical = make_cell(batch_size=64, copy=1)
    cells = (BLOG, [100.0] * 3), (identical, [130.0] * 3), (TUNED, [120.0] * 3)
    assert " ~ 1.20 (" in printed(trials(*cells))
    assert " ~ 1.20 (" not in printed(trials(cells[0], cells[2]))


def test_the_fastest_is_never_slower_than_the_second_in_the_repeats_that_both_have():
    # By its rate `tuned` leads, for a fast repeat that `blog` has not; where both were measured it is slower.
    text = printed(trials((BLOG, [100.0, 100.0, 100.0, None]), (TUNED, [90.0, 90.0, 90.0, 400.0])))
    assert "Fastest in the repeats that both have: cpu blog batch 64, 100 images/s. That is 1.11x the second" in text


def test_a_projected_epoch_is_that_of_the_rate():
    cells = rates.by_cell(trials((BLOG, [50.0, 200.0, 100.0, 400.0])))
    assert cells["epoch_seconds"].iloc[0] == pytest.approx(10_000 / cells["images_per_second"].iloc[0])
    whole = trials((BLOG, [50.0, 200.0, 100.0])).assign(epoch_seconds_kind="measured")
    assert rates.by_cell(whole)["epoch_seconds"].iloc[0] == 100.0  # of 200, 50 and 100


def test_a_slow_rate_is_told_to_two_digits():
    assert [number(rate) for rate in (0.84, 3.26, 9.96, 1234.5)] == ["0.84", "3.3", "10", "1,234"]


def test_failed_cells_are_shown_as_not_measured():
    failed = trials((TUNED, [1.0] * 3), status="out_of_memory").assign(images_per_second=None, epoch_seconds=None)
    text = printed(pd.concat([trials((BLOG, [100.0] * 3)), failed]))
    assert "not measured" in text
    assert "3 out_of_memory" in text
    assert "No trial ended ok" in printed(failed)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"num_workers": 2, "num_nodes": 2}, "2 workers 2 machines"),
        ({"num_workers": 2, "cpu_threads": 1}, "batch 64 2 workers"),  # of the same cores: no word of the threads
        ({"cpu_threads": 1}, "1 thread"),
        ({"epochs": 3}, "epochs 3"),
        ({"seed": 7}, "seed 7"),
    ],
)
def test_cells_that_differ_have_names_that_do(changes, told):
    table = trials((BLOG, [100.0] * 3), (make_cell(batch_size=64, **changes), [90.0] * 3))
    cells = rates.by_cell(table).to_dict("records")
    one, other = (answer.name(cell, cells) for cell in cells)
    assert one != other
    assert other.endswith(told)


def test_identical_cells_are_told_as_the_noise_floor():
    table = trials((BLOG, [100.0, 100.0, 100.0]), (make_cell(batch_size=64, copy=1), [101.0, 100.0, 99.0]))
    assert "Identical settings against each other" in printed(table)
    assert "cpu blog batch 64: 1.000 (0." in printed(table)


def test_the_noise_floor_names_its_settings_as_the_table_does():
    cells = [make_cell(batch_size=64, precision=of, copy=copy) for of in ("fp32", "bf16") for copy in (0, 1)]
    lines = printed(trials(*((cell, [100.0, 101.0, 99.0]) for cell in cells))).splitlines()
    floor = lines[next(n for n, line in enumerate(lines) if "Identical settings" in line) :]
    assert [line.split(":")[0].strip() for line in floor if " 1.000 (" in line] == [
        "cpu blog batch 64 bf16",
        "cpu blog batch 64 fp32",
    ]


def test_there_is_no_noise_floor_before_a_repeat_has_both_of_the_identical_cells():
    table = trials((BLOG, [100.0, None]), (make_cell(batch_size=64, copy=1), [None, 100.0]))
    assert "Identical settings" not in printed(table)


def test_analysis_needs_neither_ray_nor_torch():
    code = (
        "import sys, rresnet.analysis.diff, rresnet.analysis.answer; sys.exit(bool({'ray', 'torch'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_batch_size_at_the_edge_of_what_was_measured_is_told():
    small, large = replace(TUNED, batch_size=16), replace(TUNED, batch_size=32)
    rising = trials((small, [100.0] * 3), (large, [200.0] * 3), (BLOG, [50.0] * 3))
    line = "Batch 32 is the largest that was measured of cpu tuned: a larger one may be faster (--batch-size auto looks"
    assert line in printed(rising)
    falling = trials((small, [200.0] * 3), (large, [100.0] * 3), (BLOG, [50.0] * 3))
    assert "the largest that was measured" not in printed(falling)
    one_size = trials((large, [200.0] * 3), (BLOG, [50.0] * 3))
    assert "the largest that was measured" not in printed(one_size)


def test_why_more_repeats_would_not_do_is_told_truly(monkeypatch):
    # Two processes, each steady in itself and 20 % from the other: repeats in them tell no more.
    apart = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 201.0, 199.0] * 2 + [240.0, 241.0, 239.0] * 2))
    apart["process"] = apart["repeat"] // 6
    assert "More repeats alone would not halve its interval: it takes more --processes, too (2 so far)." in printed(
        apart
    )
    # Repeats scatter, processes do not: what is left is the allowance for drift, which the run's length alone lessens.
    even = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 260.0, 160.0] * 4))
    monkeypatch.setattr(statistics, "DRIFT_REPEATS", 10.0**9)
    assert "More repeats alone would not halve its interval: the rest is room for the machine's slow drift" in printed(
        even
    )
    monkeypatch.undo()
    steady = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 201.0, 199.0] * 4))
    assert "takes about 237 repeats: part of it is room for slow drift, which only a longer run lessens." in printed(
        steady
    )


def test_rows_that_tell_no_epoch_have_a_rate_all_the_same():
    (found,) = rates.by_cell(trials((BLOG, [100.0] * 3)).assign(epoch_seconds=None)).to_dict("records")
    assert found["images_per_second"] == pytest.approx(100)
    assert pd.isna(found["epoch_low"])
