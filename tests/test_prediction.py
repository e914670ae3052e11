import math

import pandas as pd
import pytest
from samples import make_cell
from tables import trials

from rresnet.analysis import prediction


def series(seconds_by_batch, repeats=3, **axes):
    """Rows whose step times at each batch size are as given."""
    cells = [(make_cell(batch_size=b, **axes), [b / s] * repeats) for b, s in seconds_by_batch.items()]
    return trials(*cells)


LINE = {b: 0.1 + 0.01 * b for b in (5, 10, 20, 40)}


def test_a_straight_line_is_found_exactly():
    row = prediction.fit(series(LINE)).iloc[0]
    assert row["fixed_seconds"] == pytest.approx(0.1)
    assert row["seconds_per_image"] == pytest.approx(0.01)
    assert row["peak_images_per_second"] == pytest.approx(100)
    assert row["batch_size_at_90_percent"] == 90  # 90 images take 0.1 + 0.9 s: 90 a second
    assert row["leave_one_out_error"] == pytest.approx(0, abs=1e-9)
    assert (row["sizes"], row["smallest_batch_size"], row["largest_batch_size"]) == (4, 5, 40)
    assert prediction.predict(row, 30) == pytest.approx(75)  # 30 / 0.4 s
    assert prediction.predict(row, 90) == pytest.approx(90)


@pytest.mark.parametrize("column", ["status", "images_per_second", "git_commit"])
def test_rows_that_lack_a_column_are_refused_by_name(column):
    with pytest.raises(ValueError, match=f"trials lack the columns {column}: give rows as rresnet.read returns them"):
        prediction.fit(series(LINE).drop(columns=column))


def test_relative_errors_count():
    # Through (1, 1 s), (2, 2 s) and (100, 110 s): in seconds the last would outweigh the others, relative to them not.
    row = prediction.fit(series({1: 1.0, 2: 2.0, 100: 110.0})).iloc[0]
    assert row["seconds_per_image"] == pytest.approx(1.03, abs=0.01)


def test_the_left_out_size_is_predicted_from_the_others():
    # Without 40, the line through the others is 0.1 + 0.01 b: 0.5 s are predicted, 1 s was measured, so twice the rate.
    row = prediction.fit(series({**LINE, 40: 1.0})).iloc[0]
    assert row["leave_one_out_error"] >= 1.0 - 1e-9


def test_one_step_time_whatever_the_size_has_no_peak():
    row = prediction.fit(series({8: 0.5, 16: 0.4, 32: 0.4})).iloc[0]
    assert row["seconds_per_image"] == 0
    assert pd.isna(row["peak_images_per_second"])
    assert pd.isna(row["batch_size_at_90_percent"])


def test_images_that_cost_all_of_the_step_are_at_the_peak_at_once():
    row = prediction.fit(series({8: 0.8, 16: 1.6, 32: 3.2})).iloc[0]
    assert row["fixed_seconds"] == pytest.approx(0, abs=1e-9)
    assert row["batch_size_at_90_percent"] == 1


def test_what_few_sizes_cannot_tell_is_null():
    three = prediction.fit(series({b: LINE[b] for b in (5, 10, 20)})).iloc[0]
    assert pd.isna(three["leave_one_out_error"])
    two = prediction.fit(series({b: LINE[b] for b in (5, 10)})).iloc[0]
    assert two["fixed_seconds"] == pytest.approx(0.1)
    one = prediction.fit(series({5: 0.15})).iloc[0]
    assert one[["fixed_seconds", "seconds_per_image", "peak_images_per_second"]].isna().all()
    with pytest.raises(ValueError, match="no line through 1 batch size: measure at least 2"):
        prediction.predict(one, 8)
    assert prediction.fit(series({})).empty


def test_series_machines_and_software_are_apart():
    table = pd.concat([series(LINE), series(LINE, recipe="tuned"), series(LINE).assign(hostname="other")])
    assert len(prediction.fit(table)) == 3
    assert len(prediction.fit(pd.concat([table, series(LINE, copy=1)]))) == 3


def test_workers_add_up():
    row = prediction.fit(series({b: s / 2 for b, s in LINE.items()}, num_workers=2)).iloc[
        0
    ]  # twice the images a second
    assert row["seconds_per_image"] == pytest.approx(0.01)
    assert row["peak_images_per_second"] == pytest.approx(200)
    assert prediction.predict(row, 30) == pytest.approx(150)


def test_a_size_is_the_geometric_mean_of_its_repeats():
    table = series({8: 1.0, 16: 1.0}, repeats=2)
    table.loc[table["batch_size"] == 8, "images_per_second"] = [4.0, 16.0]
    row = prediction.fit(table).iloc[0]
    assert math.isclose(prediction.predict(row, 8), 8.0)


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        prediction.predict(prediction.fit(series(LINE)).iloc[0], 0)
