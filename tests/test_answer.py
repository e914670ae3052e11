"""The answer in the terminal: which sentences, names and numbers."""

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from samples import make_cell
from tables import BLOG, TUNED, printed, trials

from rresnet import grid, naming
from rresnet.analysis import answer, decision, ranking, rates, statistics
from rresnet.config import Settings
from rresnet.terminal import number


def test_what_the_others_are_compared_with_is_the_blogs_setting_as_written():
    changed = make_cell(batch_size=64, input="resident", channels_last=True)
    cells = rates.by_cell(trials((changed, [300.0] * 3), (BLOG, [100.0] * 3), (TUNED, [200.0] * 3)))
    assert ranking.reference_cell(cells.to_dict("records"))["cell_id"] == BLOG.cell_id


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
    assert "With fewer than 3 pairs there is no interval" in few


def test_what_else_can_not_be_told_from_the_fastest_is_named():
    # `third` is the slowest by its mean, for its odd repeats; nothing tells it from the first.
    second, third = make_cell(batch_size=128), make_cell(batch_size=256)
    odd = trials((TUNED, [200.0] * 4), (second, [180.0, 181.0, 179.0, 180.0]), (third, [200.0, 60.0, 200.0, 210.0]))
    assert "Fastest, not settled: cpu tuned batch 64, 200 images/s." in printed(odd)
    assert "4 pairs): distinguishable, but not from cpu blog batch 256." in printed(odd)
    assert decision.verdicts(odd)[0].sentence().startswith("Fastest, not settled: cpu tuned batch 64, 200 images/s.")
    assert decision.verdicts(odd)[0].sentence().endswith("4 pairs): distinguishable, but not from cpu blog batch 256.")
    near = trials((TUNED, [200.0] * 4), (second, [190.0, 210.0, 170.0, 220.0]), (third, [200.0, 60.0, 200.0, 210.0]))
    assert "4 pairs): not distinguishable; nor from cpu blog batch 256." in printed(near)
    clear = trials((TUNED, [200.0] * 4), (second, [180.0, 181.0, 179.0, 180.0]), (third, [100.0, 101.0, 99.0, 100.0]))
    assert "4 pairs): distinguishable." in printed(clear)
    many = [make_cell(batch_size=size) for size in range(1, 7)]
    crowd = printed(trials(*((one, [100.0 + one.batch_size, 105.0, 100.0]) for one in many)))
    assert "not distinguishable; nor from cpu blog batch 4, cpu blog batch 3, cpu blog batch 2 and 1 more." in crowd


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
    few = printed(trials((BLOG, [100.0]), (TUNED, [101.0])))  # no interval, no verdict
    assert "~" not in few
    assert "95 % intervals" not in few
    assert "Fastest, not settled: cpu tuned" in few


def test_the_table_has_no_column_that_says_nothing():
    alone = printed(trials((TUNED, [200.0, 201.0, 199.0])))
    assert "The only setting measured: cpu tuned batch 64, 200 images/s." in alone
    for heading in ("speedup", "reference", "test accuracy", "of limit", "bound by"):
        assert heading not in alone
    full = trials((TUNED, [200.0, 201.0, 199.0]), (BLOG, [100.0] * 3))
    known = printed(full.assign(test_accuracy=0.5, percent_of_limit=40.0, bottleneck="compute"))
    assert re.search(r"speedup +test accuracy +of limit +bound by +trials", known)


def test_a_ratio_within_the_noise_floor_is_marked():
    identical = make_cell(batch_size=64, copy=1)
    cells = (BLOG, [100.0] * 3), (identical, [130.0] * 3), (TUNED, [120.0] * 3)
    assert " ~ 1.20 (" in printed(trials(*cells))
    assert "Fastest, not settled: cpu tuned batch 64, 120 images/s. That is 1.20x the second" in printed(trials(*cells))
    assert " ~ 1.20 (" not in printed(trials(cells[0], cells[2]))


def test_the_fastest_is_never_slower_than_the_second_in_the_repeats_that_both_have():
    # By its rate `tuned` leads, for a fast repeat that `blog` has not; where both were measured it is slower.
    text = printed(trials((BLOG, [100.0, 100.0, 100.0, None]), (TUNED, [90.0, 90.0, 90.0, 400.0])))
    assert "Fastest in the repeats that both have: cpu blog batch 64, 100 images/s. That is 1.11x the second" in text


def test_the_ratio_that_scatters_is_that_of_the_fastest_and_the_second():
    # By its rate `tuned` leads and `large` is second; where both were measured `blog` is 1.11 times as fast as it.
    large = make_cell(batch_size=256)
    cells = (TUNED, [90.0, 90.0, 90.0, 400.0]), (large, [60.0, 180.0, 70.0, 250.0]), (BLOG, [99.0, 100.0, 101.0, None])
    text = printed(trials(*cells).assign(process=0))
    first = (
        "Fastest in the repeats that both have, not settled: cpu blog batch 64, 100 images/s. That is 1.11x the second"
    )
    assert first in text
    assert "The lead over the second scatters by 1.0 % from repeat to repeat (standard deviation)." in text


@pytest.mark.parametrize("kind", ["projected", "measured"])
def test_an_epoch_is_that_of_the_rate_and_so_is_its_interval(kind):
    (cell,) = rates.by_cell(trials((BLOG, [50.0, 200.0, 100.0, 400.0])).assign(epoch_seconds_kind=kind)).to_dict(
        "records"
    )
    assert cell["epoch_seconds"] == pytest.approx(10_000 / (50 * 200 * 100 * 400) ** 0.25)  # not the median, of 75 s
    assert cell["epoch_seconds"] ** 2 == pytest.approx(cell["epoch_low"] * cell["epoch_high"])
    assert (
        answer.epochs({**cell, "epoch_seconds": 60, "epoch_low": 30, "epoch_high": 90}, 2)
        == "2 min 00 s (1 min 00 s - 3 min 00 s)"
    )
    assert answer.epochs({**cell, "epoch_seconds": 60, "low": None}) == "1 min 00 s"


def test_a_slow_rate_is_told_to_two_digits():
    assert [number(rate) for rate in (0.84, 3.26, 9.96, 1234.5)] == ["0.84", "3.3", "10", "1,234"]


def test_failed_cells_are_shown_as_not_measured():
    failed = trials((TUNED, [1.0] * 3), status="out_of_memory").assign(
        images_per_second=math.nan, epoch_seconds=math.nan
    )
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
    one, other = (naming.name(cell, cells) for cell in cells)
    assert one != other
    assert other.endswith(told)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({}, {"gpu tuned batch 64"}),
        (
            {"execution": ("graph", "compile")},
            {"gpu tuned batch 64 execution graph", "gpu tuned batch 64 execution compile"},
        ),
        ({"kernels": ("pytorch", "fused")}, {"gpu tuned batch 64 kernels pytorch", "gpu tuned batch 64 kernels fused"}),
    ],
)
def test_kernels_are_named_where_the_execution_does_not_tell_them(a100, flags, told):
    planned = grid.cells(Settings(batch_size=(64,), recipe=("tuned",), **flags), ["gpu"], a100)
    cells = rates.by_cell(trials(*((cell, [100.0] * 3) for cell in planned))).to_dict("records")
    assert {naming.name(cell, cells) for cell in cells} == told


def test_a_precision_that_a_recipe_has_on_one_device_alone_is_named():
    fp32, tf32 = BLOG, make_cell(batch_size=64, device="gpu", precision="tf32")
    halves = [replace(TUNED, device=device, precision="bf16") for device in ("cpu", "gpu")]
    table = trials(*((cell, [100.0] * 3) for cell in (fp32, tf32, *halves)))
    cells = rates.by_cell(table).to_dict("records")
    assert {naming.name(cell, cells) for cell in cells} == {
        "cpu blog batch 64 fp32", "gpu blog batch 64 tf32", "cpu tuned batch 64", "gpu tuned batch 64"
    }  # fmt: skip
    assert "Speedup over cpu blog batch 64 fp32" in printed(table)


def test_the_sentence_names_settings_as_the_table_does_where_some_were_not_measured():
    tf32 = make_cell(batch_size=64, device="gpu", precision="tf32")
    failed = trials((tf32, [1.0] * 3), status="error")
    found = answer.Answer(pd.concat([trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)), failed]))
    assert found.cells[1]["setting"] == "cpu blog batch 64 fp32"
    assert "2.00x the second, cpu blog batch 64 fp32 (" in found.sentence()


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


def test_a_batch_size_at_the_edge_of_what_was_measured_is_told():
    small, large = replace(TUNED, batch_size=16), replace(TUNED, batch_size=32)
    rising = trials((small, [100.0] * 3), (large, [200.0] * 3), (BLOG, [50.0] * 3))
    line = "Batch 32 is the largest measured for cpu tuned; a larger one may be faster (--batch-size auto looks"
    assert line in printed(rising)
    too_large = trials((replace(TUNED, batch_size=256), [1.0] * 3), status="out_of_memory")
    other = trials((replace(TUNED, batch_size=128, precision="fp32"), [1.0] * 3), status="error")
    text = " ".join(printed(pd.concat([rising, too_large, other])).split())
    assert (
        "measured for cpu tuned bf16 (at 256 no trial is ok: 3 out_of_memory); a size in between may be faster (--batch"
        in text
    )
    falling = trials((small, [200.0] * 3), (large, [100.0] * 3), (BLOG, [50.0] * 3))
    assert "the largest measured" not in printed(falling)
    one_size = trials((large, [200.0] * 3), (BLOG, [50.0] * 3))
    assert "the largest measured" not in printed(one_size)


def test_processes_are_named_only_where_they_are_told_to_differ():
    # Process means 8 % apart where repeats scatter by 8 %: the F-test has 3.0, its limit is 4.96.
    table = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 220.0, 185.0] * 2 + [216.0, 238.0, 200.0] * 2))
    table["process"] = table["repeat"] // 6
    text = printed(table)
    assert "% from repeat to repeat (standard deviation)." in text
    assert "from process to process" not in text
    table.loc[(table["process"] == 1) & (table["recipe"] == "tuned"), "images_per_second"] *= 1.2
    assert "from process to process" in printed(table)


def test_why_more_repeats_would_not_do_is_told_truly(monkeypatch):
    # Two processes, each steady in itself and 20 % from the other: repeats in them tell no more.
    apart = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 201.0, 199.0] * 2 + [240.0, 241.0, 239.0] * 2))
    apart["process"] = apart["repeat"] // 6
    assert "More repeats alone would not halve the interval: that also takes more --processes (2 so far)." in printed(
        apart
    )
    # Repeats scatter, processes do not: what is left is the allowance for drift, which the run's length alone lessens.
    even = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 260.0, 160.0] * 4))
    monkeypatch.setattr(statistics, "DRIFT_ROUNDS", 10.0**9)
    assert "More repeats alone would not halve the interval: the rest is room for the machine's slow drift" in printed(
        even
    )
    monkeypatch.undo()
    steady = trials((BLOG, [100.0] * 12), (TUNED, [200.0, 201.0, 199.0] * 4))
    assert (
        "would take about 237 repeats; part of its width is room for slow drift, which only a longer run reduces."
        in printed(steady)
    )


@pytest.mark.parametrize(
    ("rates", "disturbed", "told"),
    [
        ([200.0, 201.0, 40.0, 199.0, 200.0, 202.0], [2], "1 of these 6 pairs"),  # without which it hardly scatters
        ([200.0, 250.0, 90.0, 160.0, 300.0, 202.0], [0, 1, 2, 3], "4 of these 6 pairs"),  # too few are left to judge by
        ([200.0, 250.0, 90.0, 160.0, 300.0, 202.0], [5], None),  # it scatters anyway
    ],
)
def test_what_scatters_because_of_other_work_is_not_told_to_need_repeats(rates, disturbed, told):
    table = trials((BLOG, [100.0] * 6), (TUNED, rates))
    flags = [["few_windows", "foreign_load"] if repeat in disturbed else ["few_windows"] for repeat in table["repeat"]]
    text = printed(table.assign(quality_flags=flags, process=table["repeat"] // 3))
    again = f"Other work disturbed {told}: measure again on an idle machine (--retry disturbed)."
    assert (again in text) == (told is not None)
    assert ("interval half as wide" in text or "would not halve" in text) == (told is None)
    assert "rows are flagged few_windows" in text


def test_a_single_setting_is_compared_with_nothing():
    text = printed(trials((BLOG, [100.0, 101.0, 99.0])))
    assert "Speedup over" not in text
    assert "of limit:" not in text  # a column that has nothing in it needs no words
    shown = printed(trials((BLOG, [100.0] * 3), (TUNED, [200.0] * 3)).assign(percent_of_limit=20.0))
    assert "of limit: share of the machine's fastest matrix products. bound by: " in shown


def test_one_row_is_flagged_and_two_are():
    table = trials((BLOG, [100.0] * 3))
    assert "1 of 3 rows is flagged steal" in printed(table.assign(quality_flags=[["steal"], None, None]))
    assert "2 of 3 rows are flagged steal" in printed(table.assign(quality_flags=[["steal"], None, ["steal"]]))
