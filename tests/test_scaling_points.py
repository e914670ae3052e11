"""What more workers bring: the points, and the model against series that it made itself."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console
from samples import make_cell
from tables import trials as made

from rresnet.analysis import scaling
from rresnet.analysis.scaling import Model
from rresnet.experiments.scaling import show


def series(rates, communication):
    """Rows of a weak scaling with the given images a second and communication by number of workers."""
    cells = {n: make_cell(num_workers=n, cpu_threads=4 // n, batch_size=8) for n in rates}
    table = made(*((cell, [rates[n]] * 4) for n, cell in cells.items()))
    workers = table["num_workers"]
    return table.assign(
        step_seconds=8 * workers / table["images_per_second"],
        communication_seconds=workers.map(communication).astype(float),
    )


def test_efficiency_is_the_speedup_over_how_many_times_the_cores_and_the_share_is_of_the_step():
    weak = scaling.points(series({1: 100.0, 2: 80.0}, {2: 0.05})).set_index("num_workers")
    assert weak["kind"].tolist() == ["weak", "weak"]
    assert weak.loc[1, ["speedup", "efficiency"]].tolist() == [1.0, 1.0]
    assert weak.loc[2, "speedup"] == pytest.approx(0.8)
    assert weak.loc[2, "efficiency"] == pytest.approx(0.8)  # the same 4 cores in both
    assert weak.loc[2, "efficiency_low"] <= 0.8 <= weak.loc[2, "efficiency_high"]
    assert weak.loc[2, "step_seconds"] == pytest.approx(16 / 80)
    assert weak.loc[2, "communication_share"] == pytest.approx(0.05 / 0.2)
    assert pd.isna(weak.loc[1, "communication_share"])


def test_strong_scaling_keeps_the_whole_batch():
    cells = [make_cell(num_workers=n, cpu_threads=4 // n, batch_size=b) for n, b in ((1, 8), (2, 8), (2, 4))]
    table = made(*((cell, [rate] * 3) for cell, rate in zip(cells, (100.0, 90.0, 50.0), strict=True)))
    found = scaling.points(table.assign(step_seconds=0.1, communication_seconds=0.01))
    told = [(row["kind"], row["num_workers"], row["batch_size"], row["speedup"]) for _, row in found.iterrows()]
    assert told == [("weak", 1, 8, 1.0), ("weak", 2, 8, 0.9), ("strong", 1, 8, 1.0), ("strong", 2, 4, 0.5)]


def test_on_gpus_efficiency_counts_them():
    cells = [make_cell(device="gpu", num_workers=n, batch_size=8) for n in (1, 4)]
    table = made((cells[0], [100.0] * 3), (cells[1], [300.0] * 3)).assign(step_seconds=0.1, communication_seconds=0.01)
    four = scaling.points(table).query("num_workers == 4 and kind == 'weak'").iloc[0]
    assert (four["speedup"], four["efficiency"]) == (pytest.approx(3.0), pytest.approx(0.75))


def modelled(model, counts):
    workers = pd.Series(counts)
    steps = workers.map(model.step_seconds)
    return pd.DataFrame(
        {
            "num_workers": workers,
            "step_seconds": steps,
            "communication_seconds": (steps - model.computing).where(workers > 1),
        }
    )


def test_the_model_is_found_again_in_what_it_predicts_and_the_largest_point_from_the_smaller():
    model = Model(computing=0.1, latency=0.002, transfer=0.03)
    assert model.step_seconds(4) == pytest.approx(0.1 + 0.002 * 3 + 0.03 * 3 / 4)
    found = scaling.fit(modelled(model, [1, 2, 4, 8]))
    assert (found.computing, found.latency, found.transfer) == pytest.approx((0.1, 0.002, 0.03))
    assert scaling.held_out_error(modelled(model, [1, 2, 4, 8])) == pytest.approx(0.0, abs=1e-12)


def test_the_held_out_error_is_the_share_by_which_the_largest_is_missed():
    table = modelled(Model(computing=0.1, latency=0.002, transfer=0.03), [1, 2, 4, 8])
    table.loc[3, "step_seconds"] *= 1.25
    assert scaling.held_out_error(table) == pytest.approx(1 - 1 / 1.25)
    assert scaling.held_out_error(table[:3]) is None  # one smaller number of several workers is too few


def test_two_workers_alone_tell_the_transfer():
    found = scaling.fit(modelled(Model(computing=0.1, latency=0.0, transfer=0.04), [1, 2]))
    assert (found.latency, found.transfer) == (0.0, pytest.approx(0.04))
    assert scaling.fit(modelled(found, [1])) is None


def test_what_is_printed_says_what_was_measured_and_what_is_predicted(tmp_path):
    console = Console(width=160, record=True, file=io.StringIO())
    show(series({1: 100.0, 2: 80.0}, {2: 0.05}), console, tmp_path)
    told = console.export_text()
    assert "weak" in told
    assert "0.80" in told
    assert "25 %" in told
    # 2 workers: a step of 200 ms, 50 of them communication: transfer 100 ms. 1024: 0.15 + 0.1 x 1023 / 1024 s.
    assert f"1024 workers {1024 * 8 / (0.15 + 0.1 * 1023 / 1024):,.0f}" in told
    assert "Prediction, not measured" in told


@pytest.mark.parametrize(
    ("rates", "communication", "told"),
    [
        ({1: 26.0, 2: 640.0}, {2: 0.006}, "a step of 1 worker took 1519 % longer"),  # 8 / 26 s against 25 - 6 ms
        ({1: 100.0, 2: 80.0, 4: 40.0}, {2: 0.0, 4: 0.0}, "a step of 4 workers took 60 % longer"),  # 0.8 s against 0.5
    ],
)
def test_nothing_is_predicted_by_a_model_that_has_a_measured_step_much_shorter(rates, communication, told):
    (line,) = scaling.predictions(scaling.points(series(rates, communication)))
    assert line == f"No prediction for cpu blog batch 8 per worker: {told} than the model of the exchange says."


def test_one_number_of_workers_in_two_rows_tells_no_latency():
    model = Model(computing=0.1, latency=0.0, transfer=0.04)
    twice = pd.concat([modelled(model, [1, 2]), modelled(model, [2])])  # on one machine and on two, say
    assert scaling.fit(twice).latency == 0.0
    assert scaling.fit(twice).step_seconds(1024) == pytest.approx(model.step_seconds(1024))


def test_second_copies_are_no_points_and_what_differs_is_named():
    cells = [make_cell(num_workers=n, cpu_threads=4 // n, copy=copy, input=path)
             for n in (1, 2) for copy in (0, 1) for path in ("dataloader", "resident")]  # fmt: skip
    table = made(*((cell, [100.0] * 3) for cell in cells)).assign(step_seconds=0.1, communication_seconds=0.01)
    found = scaling.points(table).query("kind == 'weak'")
    assert len(found) == 4
    assert set(found["setting"]) == {"cpu blog batch 8 input dataloader", "cpu blog batch 8 input resident"}
    assert len(scaling.predictions(found)) == 2


def test_what_more_workers_bring_and_the_exchange_takes_is_told_of_each_setting():
    table = series({1: 100.0, 2: 80.0}, {2: 0.05})
    assert scaling.summary(table) == [
        "cpu blog batch 8, 2 workers over 1: 0.80 (0.80 - 0.80) times the images/s; "
        "exchanging gradients takes 25 % of a step."
    ]
    alone = table.assign(communication_seconds=math.nan)
    assert scaling.summary(alone)[0].endswith("(0.80 - 0.80) times the images/s.")
    assert scaling.summary(table[table["num_workers"] == 2]) == []
    assert scaling.summary(table.assign(status="error")) == []


def test_a_batch_that_workers_share_is_told_with_what_each_has_and_machines_with_their_number():
    cells = [make_cell(num_workers=1, batch_size=8), make_cell(num_workers=2, num_nodes=2, batch_size=4)]
    table = made((cells[0], [100.0] * 3), (cells[1], [150.0] * 3)).assign(step_seconds=0.1)
    told = scaling.summary(table)
    assert [line.split(":")[0] for line in told] == [
        "cpu blog batch 8, 2 workers of batch 4 on 2 machines over 1 on 1 machine"
    ]


def test_what_more_workers_bring_is_told_of_no_copies():
    table = series({1: 100.0, 2: 80.0}, {2: 0.05}).assign(copy=1)
    assert scaling.summary(table) == []
    assert scaling.points(table).empty


def told_of(*cells_and_rates):
    return scaling.summary(made(*cells_and_rates).assign(step_seconds=0.1))


def test_settings_whose_fewest_workers_differ_keep_names_of_their_own():
    cells = [make_cell(num_workers=n, precision=p) for p, n in (("fp32", 1), ("fp32", 4), ("bf16", 2), ("bf16", 4))]
    told = told_of(*((cell, [rate] * 3) for cell, rate in zip(cells, (100.0, 150.0, 100.0, 125.0), strict=True)))
    assert [line.split(" (")[0] for line in told] == [
        "cpu blog batch 8 bf16, 4 workers over 2: 1.25",
        "cpu blog batch 8 fp32, 4 workers over 1: 1.50",
    ]


def test_where_machines_vary_they_are_told_on_both_sides():
    cells = [make_cell(num_workers=n, num_nodes=nodes) for n, nodes in ((2, 1), (2, 2), (4, 1))]
    told = told_of(*((cell, [rate] * 3) for cell, rate in zip(cells, (100.0, 90.0, 150.0), strict=True)))
    assert [line.split(" (")[0] for line in told] == [
        "cpu blog batch 8, 4 workers on 1 machine over 2 on 1 machine: 1.50",
        "cpu blog batch 8, 2 workers on 2 machines over 2 on 1 machine: 0.90",
    ]


def test_a_ratio_that_says_nothing_or_was_not_measured_is_told_so():
    cells = [make_cell(num_workers=n, cpu_threads=4 // n) for n in (1, 2)]
    (told,) = told_of((cells[0], [100.0, 110.0, 90.0]), (cells[1], [104.0, 99.0, 95.0]))
    assert told.endswith("times the images/s, not distinguishable.")
    (told,) = told_of((cells[0], [100.0, None]), (cells[1], [None, 90.0]))
    assert told == "cpu blog batch 8, 2 workers over 1: never measured side by side."


def test_a_table_that_is_older_than_the_exchange_and_the_machines_is_read_too():
    table = series({1: 100.0, 2: 80.0}, {2: 0.05}).drop(columns=["communication_seconds", "num_nodes"])
    assert scaling.summary(table) == ["cpu blog batch 8, 2 workers over 1: 0.80 (0.80 - 0.80) times the images/s."]
