"""The sections of a report: their findings and the data of their figures."""

import pandas as pd
import pytest
from pages import two

from results import BLOG, TUNED, epochs, trials, write
from rresnet.analysis import answer
from rresnet.reporting import parts, speed, use


def part_of(tmp_path, rows, epochs_of_rows=()):
    (part,) = parts.read([write(tmp_path / "a", rows, epochs_of_rows)])
    cells = pd.DataFrame(answer.Answer(part.trials).cells)
    return part, cells[cells["repeats"] > 0]


def test_the_knee_is_the_smallest_size_near_the_highest_rate(tmp_path):
    # 90 % of 100 is 90: batch 32. The tuned series doubles up to its last size: no knee yet.
    sizes = [({"batch_size": size}, [rate] * 3) for size, rate in ((8, 50.0), (16, 80.0), (32, 95.0), (64, 100.0))]
    sizes += [({**TUNED, "batch_size": size}, [rate] * 3) for size, rate in ((8, 100.0), (16, 200.0), (32, 400.0))]
    part, measured = part_of(tmp_path, trials(*sizes))
    section = speed.batch_sizes(part, measured)
    assert section.findings[0] == "Knees: cpu blog at batch 32."
    assert section.findings[1] == "Still rising at the largest size measured: cpu tuned."
    assert section.findings[2].startswith("Predicted from a line through the step times, not measured: ")
    assert len(section.data) == 7


def test_sizes_that_are_not_distinguishable_have_no_knee(tmp_path):
    sizes = [({"batch_size": size}, rates) for size, rates in ((8, [50.0, 130.0, 80.0]), (16, [90.0, 60.0, 140.0]))]
    part, measured = part_of(tmp_path, trials(*sizes))
    section = speed.batch_sizes(part, measured)
    assert section.findings == ("The fastest size is not distinguishable from the slowest: cpu blog.",)


def test_sizes_are_apart_if_their_paired_ratio_is_however_wide_the_intervals_of_their_rates(tmp_path):
    drifting = [100.0, 60.0, 140.0, 80.0]  # with the machine, both sizes alike
    sizes = [({"batch_size": size}, [rate * by for rate in drifting]) for size, by in ((8, 1.0), (16, 1.5))]
    part, measured = part_of(tmp_path, trials(*sizes))
    assert measured["low"].max() < measured["high"].min()
    assert speed.batch_sizes(part, measured).findings == ("Still rising at the largest size measured: cpu blog.",)


def test_of_fewer_than_three_pairs_nothing_is_said_about_sizes(tmp_path):
    part, measured = part_of(tmp_path, trials(*(({"batch_size": size}, [10.0 * size] * 2) for size in (8, 16))))
    told = ("With fewer than 3 pairs it is not known whether sizes differ: cpu blog.",)
    assert speed.batch_sizes(part, measured).findings == told


@pytest.mark.parametrize(
    ("seconds_per_image", "told"), [(0.02, "at batch 115 (peak 50"), (0.001, "not by batch 128, as")]
)
def test_a_line_is_not_followed_far_beyond_the_largest_size_measured(seconds_per_image, told):
    # 90 % of the peak is reached where the images of a step take nine times as long as what it takes besides.
    sizes = [({"batch_size": size}, [size / (0.255 + seconds_per_image * size)] * 3) for size in (8, 16, 32)]
    known = {"git_commit": "c", "dataset_fingerprint": "d", "environment_fingerprint": "e"}
    (line,) = speed.predictions(pd.DataFrame(trials(*sizes, **known)))
    assert f"90 % of the peak rate is reached by cpu blog {told}" in line


def test_predictions_of_two_environments_have_two_names(tmp_path):
    sizes = [({"batch_size": size}, [rate] * 3) for size, rate in ((8, 50.0), (16, 80.0), (32, 95.0))]
    known = {"git_commit": "c", "dataset_fingerprint": "d"}
    old, new = (trials(*sizes, environment_fingerprint=of, **known) for of in ("old", "new"))
    (line,) = speed.predictions(pd.DataFrame(old + new))
    assert "cpu blog (environment old) at batch" in line
    assert "cpu blog (environment new) at batch" in line
    (line,) = speed.predictions(pd.DataFrame(old))
    assert "cpu blog at batch" in line


def test_seconds_are_summed_by_kind(tmp_path):
    rows = two()
    part, measured = part_of(tmp_path, rows, epochs(rows[:4], [0.5, 0.6]))
    section = use.time(part, measured)
    table = section.data.set_index("setting")
    # Four trials of each: 3 s of warm-up, 1 s of training; the blog's had two evaluations of 2 s each.
    assert table.loc["cpu blog batch 64"].tolist() == [12.0, 4.0, 16.0]
    assert table.loc["cpu tuned batch 64"].dropna().tolist() == [12.0, 4.0]
    assert section.findings == ("17 % of 48 s was measured training.",)


def test_time_to_accuracy_is_to_nearly_what_every_setting_reached(tmp_path):
    rows = two()
    learned = epochs(rows[:4], [0.5, 0.7, 0.8]) + epochs(rows[4:], [0.6, 0.7, 0.75], seconds=2.0)
    part, measured = part_of(tmp_path, rows, learned)
    section = speed.learning(part, measured)
    # 0.95 * 0.75 is an eighth of the way from blog's second epoch of 10 s to its third, a quarter of tuned's of 2 s.
    assert section.findings == (
        "Time to a test accuracy of 0.712 (95 % of the highest that every setting reached): cpu tuned batch 64 4.5 s, "
        "cpu blog batch 64 21 s. No interval is claimed: the order of close ones may be chance.",
    )
    few = epochs(rows[:2], [0.8, 0.9]) + epochs(rows[4:6], [0.6, 0.8])
    (told,) = speed.learning(*part_of(tmp_path, rows, few)).findings
    assert told.endswith("tuned batch 64 18 s. With fewer than 3 repeats the order of close ones may be chance.")
    assert section.data["epoch"].tolist() == [1, 2, 3, 1, 2, 3]
    assert section.data["elapsed_seconds"].tolist() == [2.0, 4.0, 6.0, 10.0, 20.0, 30.0]


def test_clocks_are_compared_within_the_trials_that_timed_them(tmp_path):
    rows = trials((BLOG, [100.0, 50.0, 50.0, 90.0]))
    for row, alone, what in ((rows[0], 120.0, "compute"), (rows[3], 100.0, "memory")):
        row |= {"compute_images_per_second": alone, "input_images_per_second": 900.0, "bottleneck": what}
    rows[1] |= {"compute_images_per_second": 55.0, "input_images_per_second": 900.0, "bottleneck": "compute"}
    part, measured = part_of(tmp_path, rows)
    section = use.clocks(part, measured)
    assert section.data["training"].tolist() == [90.0]  # of 100, 50 and 90: the second 50 was not timed
    assert section.data["step alone"].tolist() == [100.0]
