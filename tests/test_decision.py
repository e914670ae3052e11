import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from samples import make_cell
from tables import BLOG, GPU, TUNED, printed, trials

from rresnet.analysis import decision
from rresnet.analysis.decision import Price
from rresnet.analysis.statistics import RATE_DRIFT_LIMIT, half_width

CPU_PRICE, GPU_PRICE = Price(what="cpu", per_hour=0.36), Price(what="gpu", per_hour=3.6)


def by_setting(trials, prices=()):
    return decision.costs(trials, prices).set_index("setting")


def told(trials, prices=()):
    return {v.question: v for v in decision.verdicts(trials, prices)}


def test_a_cost_is_the_machines_hour_times_the_time():
    # 10,000 images at 100 a second: 100 s, of 0.36 an hour: 0.01. At 2000 a second: 5 s of 3.6 an hour: 0.005.
    table = by_setting(trials((BLOG, [100.0] * 3), (GPU, [2000.0] * 3)), (CPU_PRICE, GPU_PRICE))
    cpu, gpu = table.loc["cpu blog batch 64 fp32"], table.loc["gpu blog batch 64 tf32"]
    assert (cpu["epoch_cost"], cpu["cost_per_1000_images"]) == (pytest.approx(0.01), pytest.approx(0.001))
    assert (gpu["epoch_cost"], gpu["cost_per_1000_images"]) == (pytest.approx(0.005), pytest.approx(0.0005))
    assert table["nodes"].tolist() == [1, 1]


def test_a_costs_interval_is_its_rates():
    row = by_setting(trials((BLOG, [90.0, 100.0, 110.0])), (CPU_PRICE,)).iloc[0]
    assert row["epoch_cost_low"] / row["epoch_cost_high"] == pytest.approx(row["low"] / row["high"])
    assert row["epoch_cost_low"] < row["epoch_cost"] < row["epoch_cost_high"]


def test_machines_are_counted():
    table = trials((BLOG, [100.0] * 3)).assign(num_nodes=2)
    assert by_setting(table, (CPU_PRICE,)).iloc[0]["epoch_cost"] == pytest.approx(0.02)


def test_what_is_not_known_is_null():
    row = by_setting(trials((BLOG, [100.0] * 3), (GPU, [200.0] * 3)), (GPU_PRICE,)).loc["cpu blog batch 64 fp32"]
    unknown = ["epoch_cost", "epoch_cost_low", "cost_per_1000_images", "epoch_joules", "joules_per_1000_images"]
    assert row[unknown].isna().all()
    failed = by_setting(trials((BLOG, [100.0] * 3), status="error"), ()).iloc[0]
    assert failed[["images_per_second", "epoch_seconds", "on_front"]].isna().all()
    assert decision.costs(trials()).empty


def test_joules_are_those_of_the_images():
    # 50 J in 100 images: 500 J in 1,000, 5,000 J in an epoch of 10,000.
    table = trials((BLOG, [100.0] * 3)).assign(energy_joules=50.0, measured_images=100)
    row = by_setting(table).iloc[0]
    assert (row["joules_per_1000_images"], row["epoch_joules"]) == (pytest.approx(500), pytest.approx(5000))


def test_the_front_is_what_nothing_beats():
    # The GPU is faster and the blog's CPU setting cheaper; the tuned one is slower and dearer than the blog's.
    table = trials((BLOG, [100.0] * 3), (TUNED, [90.0] * 3), (GPU, [200.0] * 3))
    found = by_setting(table, (CPU_PRICE, GPU_PRICE))["on_front"].to_dict()
    assert found == {"cpu blog batch 64 fp32": True, "cpu tuned batch 64": False, "gpu blog batch 64 tf32": True}
    # Without prices only time is known, and with energy the slow setting may be the one that takes least.
    assert by_setting(table)["on_front"].tolist() == [False, False, True]
    energy = table.assign(measured_images=100, energy_joules=[50.0] * 3 + [10.0] * 3 + [90.0] * 3)
    assert by_setting(energy)["on_front"].tolist() == [True, True, True]


def test_settings_of_unlike_tasks_do_not_beat_each_other():
    small = make_cell(batch_size=64, model="resnet34")
    table = trials((BLOG, [100.0] * 3), (small, [50.0] * 3))
    assert decision.costs(table)["on_front"].tolist() == [True, True]
    found = [v.sentence() for v in decision.verdicts(table)]
    assert found[0].startswith(
        "Fastest for resnet18 on fashion-mnist-12k at 32 pixels: cpu blog batch 64, 100 images/s"
    )  # the model is not said again with each setting
    assert len(found) == 2


def test_fastest_and_cheapest_may_differ_and_are_paired():
    # The GPU is 8, 4 and 2 times as fast, 4 on the geometric mean, and costs 10 times as much an hour.
    table = trials((BLOG, [100.0, 100.0, 100.0]), (GPU, [800.0, 400.0, 200.0]))
    found = told(table, (CPU_PRICE, GPU_PRICE))
    assert found["fastest"].setting == "gpu blog batch 64 tf32"
    assert found["fastest"].ratio.estimate == pytest.approx(4)
    assert found["cheapest"].setting == "cpu blog batch 64 fp32"
    assert found["cheapest"].ratio.estimate == pytest.approx(2.5)
    assert found["cheapest"].side_by_side
    assert "least energy" not in found
    ratio = found["fastest"].ratio  # one interval, seen from both sides and times the prices' ratio
    assert found["cheapest"].ratio.high / found["cheapest"].ratio.low == pytest.approx(ratio.high / ratio.low)


def test_least_energy_is_the_ratio_of_joules():
    table = trials((BLOG, [100.0] * 3), (TUNED, [100.0] * 3)).assign(measured_images=100)
    table["energy_joules"] = table["recipe"].map({"blog": 60.0, "tuned": 20.0})
    verdict = told(table)["least energy"]
    assert (verdict.setting, verdict.ratio.estimate) == ("cpu tuned batch 64", pytest.approx(3))
    assert verdict.sentence().startswith(
        "Least energy: cpu tuned batch 64, 2,000 J an epoch. The second, cpu blog batch 64, takes 3.00 times"
    )


def test_what_ran_on_two_machines_is_told_apart_and_compared_unpaired():
    one = trials((BLOG, [100.0, 110.0, 90.0]), hostname="here")
    table = pd.concat([one, trials((BLOG, [400.0, 440.0, 360.0]), hostname="there")])
    verdict = told(table)["fastest"]
    assert (verdict.setting, verdict.second) == ("cpu blog batch 64 on there", "cpu blog batch 64 on here")
    assert (verdict.ratio.estimate, verdict.side_by_side) == (pytest.approx(4), False)
    assert verdict.distinguishable
    # Both sides scatter alike, so the interval is sqrt(2) times as wide in logs as one rate's.
    half = half_width(np.log([100.0, 110.0, 90.0]), 3, drift_limit=RATE_DRIFT_LIMIT)
    assert math.log(verdict.ratio.high / 4) == pytest.approx(math.sqrt(2) * half)
    assert "3 repeats, not measured side by side): distinguishable" in verdict.sentence()


def test_two_versions_of_pytorch_on_one_machine_are_not_averaged():
    one = trials((BLOG, [100.0] * 3), run_id="r1").assign(environment_fingerprint="a", torch_version="2.11")
    table = pd.concat([one, one.assign(run_id="r2", environment_fingerprint="b", torch_version="2.15")])
    assert decision.costs(table)["setting"].tolist() == [
        "cpu blog batch 64 (torch 2.11)",
        "cpu blog batch 64 (torch 2.15)",
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"driver_version": "570.1"}, "driver 570.1"),
        ({"cuda_version": "12.8"}, "cuda 12.8"),
        ({"cpu_model": "A CPU"}, "cpu model A CPU"),
        ({"gpu_name": "NVIDIA A100"}, "gpu name NVIDIA A100"),
        ({"os_version": "Linux 6.8.0-45-generic"}, "os Linux 6.8.0-45-generic"),  # the end of it may be what differs
        ({}, "environment a"),  # rows of a CPU do not have the GPU's driver
    ],
)
def test_two_environments_of_one_machine_have_two_names(changes, told):
    one = trials((BLOG, [100.0] * 3), run_id="r1").assign(environment_fingerprint="a", **changes)
    unknown = dict.fromkeys(changes)
    table = pd.concat([one, one.assign(run_id="r2", environment_fingerprint="b", **unknown)])
    first, second = decision.costs(table)["setting"]
    assert first == f"cpu blog batch 64 ({told})"
    assert second not in (first, "cpu blog batch 64")


def test_a_failed_trial_that_does_not_know_its_machine_makes_no_second_row():
    table = pd.concat([trials((BLOG, [100.0] * 3)), trials((BLOG, [100.0]), status="killed", hostname=None)])
    assert decision.costs(table)["setting"].tolist() == ["cpu blog batch 64"]


def test_a_verdict_names_no_setting_that_is_behind_in_its_pairs():
    table = trials((BLOG, [100.0, 100.0, 100.0, None]), (TUNED, [90.0, 90.0, 90.0, 400.0]))
    (fastest,) = decision.verdicts(table)
    assert "blog" in fastest.setting
    assert fastest.ratio.estimate == pytest.approx(1 / 0.9)


def test_the_fastest_is_not_beaten_in_its_pairs_by_any_other_setting():
    fast, slow = [100.0] * 3, [50.0] * 3
    third = replace(TUNED, batch_size=256)
    table = trials((BLOG, fast + slow), (TUNED, [98.0] * 3 + [49.0] * 3), (third, [None] * 3 + [60.0] * 3))
    (fastest,) = decision.verdicts(table)
    assert fastest.setting == "cpu tuned batch 256"
    assert fastest.ratio.estimate == pytest.approx(1.2)
    assert "Fastest in the repeats that both have: cpu tuned batch 256" in printed(table)


def test_a_single_odd_pair_deposes_no_setting():
    blog, tuned = [120.0] * 12, [None] + [200.0] * 11
    odd = replace(TUNED, batch_size=256)
    table = trials((BLOG, blog), (TUNED, tuned), (odd, [100.0] * 1 + [210.0] + [None] * 10))
    verdict = decision.verdicts(table)[0]
    assert (verdict.setting, verdict.second) == ("cpu tuned batch 64", "cpu blog batch 64")
    assert "Fastest: cpu tuned batch 64, 200 images/s. That is 1.67x the second, cpu blog batch 64" in printed(table)


@pytest.mark.parametrize("shared", [1, 2])
def test_nothing_is_fastest_or_cheapest_that_is_behind_in_the_few_pairs_there_are(shared):
    # Three repeats each, of which they share one or two: by its mean `tuned` leads, in the pairs it is behind.
    gap = [None] * (3 - shared)
    table = trials((TUNED, [200.0] * (3 - shared) + [90.0] * shared), (BLOG, [*gap, *[100.0] * shared, *gap]))
    blog = trials((BLOG, [100.0] * (3 - shared)))
    blog["repeat"] += 3
    table = pd.concat([table, blog])
    for verdict in decision.verdicts(table, decision.prices(["cpu=1 USD/h"])):
        assert (verdict.setting, verdict.side_by_side) == ("cpu blog batch 64", True)
        assert verdict.ratio.estimate == pytest.approx(1 / 0.9)
    first = "Fastest in the repeats that both have, not settled: cpu blog batch 64, 100 images/s. That is 1.11x"
    assert first in printed(table)


def test_the_noise_floor_grades_a_verdict():
    copy = make_cell(batch_size=64, copy=1)
    table = trials((BLOG, [100.0] * 3), (copy, [130.0] * 3), (TUNED, [120.0] * 3))
    verdict = told(table)["fastest"]
    assert (verdict.setting, verdict.distinguishable) == ("cpu tuned batch 64", False)
    assert verdict.sentence().startswith("Fastest, not settled: cpu tuned batch 64, 120 images/s.")
    assert "not distinguishable, because identical settings came out up to 30.0 % apart" in verdict.sentence()


def test_few_repeats_and_only_settings_are_said():
    assert told(trials((BLOG, [100.0] * 2), (TUNED, [200.0] * 2)))["fastest"].sentence() == (
        "Fastest, not settled: cpu tuned batch 64, 200 images/s. That is 2.00 times as fast as the second, cpu blog "
        "batch 64; with fewer than 3 pairs no interval is claimed, so it is not known whether they differ."
    )
    only = told(trials((BLOG, [100.0] * 3)))["fastest"]
    assert only.sentence() == "Fastest: cpu blog batch 64, 100 images/s, the only setting for which this is known."
    assert decision.verdicts(trials((BLOG, [100.0]), status="error")) == []


@pytest.mark.parametrize("column", ["git_commit", "dataset_fingerprint"])
def test_unlike_commits_and_data_are_not_averaged(column):
    table = pd.concat(
        [trials((BLOG, [rate] * 3), run_id=of).assign(**{column: of}) for of, rate in (("a", 10.0), ("b", 20.0))]
    )
    assert sorted(decision.costs(table)["images_per_second"]) == pytest.approx([10, 20])
    said = " ".join(verdict.sentence() for verdict in decision.verdicts(table))
    told = ["git commit b)"] if column == "git_commit" else ["fashion-mnist-12k (a)", "fashion-mnist-12k (b)"]
    assert all(one in said for one in told), said
    assert len([v for v in decision.verdicts(table) if v.question == "fastest"]) == (1 if column == "git_commit" else 2)
    unknown = table.assign(**{column: table[column].where(table["run_id"] == "a", None)})
    told = [v.sentence() for v in decision.verdicts(unknown) if v.question == "fastest"]
    assert len(set(told)) == len(told)
    assert any("not known" in sentence for sentence in told)


def test_a_counter_that_stands_still_tells_no_energy():
    table = trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)).assign(measured_images=100)
    table["energy_joules"] = [0.0, 6.0, 6.0, 0.0, 0.0, 0.0]
    (verdict,) = (v for v in decision.verdicts(table) if v.question == "least energy")
    assert (verdict.setting, verdict.second) == ("cpu blog batch 64", None)


def test_a_slow_rate_and_a_missing_currency_are_told():
    table = trials((BLOG, [0.44] * 3))
    told = {v.question: v.sentence() for v in decision.verdicts(table, decision.prices(["cpu=1/h"]))}
    assert "0.44 images/s" in told["fastest"]
    assert "(currency not given) an epoch" in told["cheapest"]


@pytest.mark.parametrize("column", ["hostname", "git_commit", "cell_id", "energy_joules", "status", "repeat", "run_id"])
def test_rows_without_what_tells_them_apart_are_refused_by_name(column):
    with pytest.raises(ValueError, match=f"trials lack the columns {column}: give rows as rresnet.read returns them"):
        decision.verdicts(trials((BLOG, [100.0] * 3)).drop(columns=column))


@pytest.mark.parametrize("question", [decision.verdicts, decision.costs])
def test_rows_that_are_there_twice_are_refused(question):
    table = trials((BLOG, [100.0] * 3))
    with pytest.raises(ValueError, match=r'some rows are there twice: give trials\.drop_duplicates\(\["run_id"'):
        question(pd.concat([table, table]))
