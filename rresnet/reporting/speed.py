"""The sections on speed: speedups, batch sizes and their knee, the ladder, time to accuracy."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from rresnet import naming
from rresnet.analysis import comparison, costs, ladder, pairing, prediction
from rresnet.analysis.statistics import MINIMUM_REPEATS
from rresnet.figures import amounts, bars
from rresnet.figures.drawing import MOST_SERIES
from rresnet.reporting.parts import Part
from rresnet.reporting.section import MOST_LINES, Section, left_out
from rresnet.terminal import duration, number, percent

KNEE = 0.9  # of a series' highest rate
NEARLY = 0.95  # of the accuracy that every setting reached
FEWEST_SIZES = 3  # batch sizes of a line that is worth reporting: two always fit one
FARTHEST = 4  # times the largest batch size measured: a line is not trusted beyond


def speedups(measured: pd.DataFrame) -> Section:
    """Each setting over the reference."""
    compared = measured.dropna(subset=["speedup"])
    reference = measured.loc[measured["is_reference"], "setting"]
    if compared.empty or reference.empty:  # with identical cells the reference may be a second copy, which is not here
        return Section(key="speedup", title="Speedup", absent="no two settings were measured in the same repeat")
    columns = ["setting", "device", "batch_size", "speedup", "speedup_low", "speedup_high", "pairs", "distinguishable"]
    against = str(reference.iloc[0])
    same = compared[compared["distinguishable"].eq(False)]["setting"]
    return Section(
        key="speedup",
        title="Speedup",
        reading=f"Each mark is a setting's ratio of images/s to {against}, paired by repeat; the bar is its 95 % "
        "interval. Where the bar crosses 1, the two can't be told apart. A hollow mark has fewer than 3 pairs, "
        "and no interval.",
        findings=(
            *left_out(len(compared)),
            *([f"Not distinguishable from {against}: {', '.join(same)}."] if len(same) else []),
        ),
        figure=bars.speedups(compared.head(MOST_LINES), against),
        data=compared[columns],
    )


def batch_sizes(part: Part, measured: pd.DataFrame) -> Section:
    """The rate against the batch size, the knee, and what a line through the step times predicts."""
    title = "Images/s against batch size"
    rates = measured.assign(series=series(measured))
    several = rates.groupby("series")["batch_size"].transform("nunique") > 1
    if not several.any():
        return Section(key="batch-size", title=title, absent="each setting was measured at one batch size")
    rates = rates[several]
    kept = rates["series"].unique()[:MOST_SERIES]
    shown = rates[rates["series"].isin(kept)]
    apart = sizes_apart(part.trials, shown)
    knees = knee(shown[shown["series"].map(apart).eq(True)])
    more = len(rates["series"].unique()) - len(kept)
    return Section(
        key="batch-size",
        title=title,
        reading="Both axes are logarithmic; upright bars are 95 % intervals. A ring marks the knee where there is one: "
        f"the smallest measured batch size that reaches {percent(KNEE)} of the highest rate. Larger ones bring little.",
        findings=(
            *_knees(apart, knees),
            *([f"The {len(kept)} fastest series are drawn; {more} more are in the CSV."] if more else []),
            *predictions(part.trials),
        ),
        figure=amounts.batch_sizes(shown, knees),
        data=rates[["series", "batch_size", "images_per_second", "low", "high", "repeats"]],
    )


def series(cells: pd.DataFrame) -> "pd.Series[str]":
    """The name of each cell without its batch size: what a line through batch sizes is called."""
    rows: list[dict[Any, Any]] = cells.to_dict("records")
    return pd.Series([naming.name(row, rows, sized=False) for row in rows], index=cells.index)


def knee(rates: pd.DataFrame) -> pd.DataFrame:
    """For each series the row of the smallest batch size that reaches `KNEE` of its highest rate.

    A series that reaches it only at its largest batch size has no knee yet: its rate still rises. One whose sizes are
    not known to differ (`sizes_apart`) should be left out.
    """
    highest = rates.groupby("series")["images_per_second"].transform("max")
    largest = rates.groupby("series")["batch_size"].transform("max")
    near = rates[rates["images_per_second"] >= KNEE * highest].sort_values("batch_size")
    first = near.groupby("series", sort=False).head(1)
    return first[first["batch_size"] < largest[first.index]]


def sizes_apart(trials: pd.DataFrame, rates: pd.DataFrame) -> dict[str, bool | None]:
    """Whether the fastest size of each series is distinguishable from its slowest; None with fewer than 3 pairs."""
    floors, apart = comparison.noise_floors(trials), dict[str, bool | None]()
    for name, sizes in rates.sort_values("images_per_second").groupby("series", sort=False):
        slowest, fastest = sizes.iloc[0].to_dict(), sizes.iloc[-1].to_dict()
        ratio = pairing.ratio(trials, fastest["cell_id"], slowest["cell_id"])
        graded = comparison.with_floor(ratio, floors, slowest, fastest)
        apart[str(name)] = graded.distinguishable if graded else None
    return apart


def _knees(apart: Mapping[str, bool | None], knees: pd.DataFrame) -> list[str]:
    sizes = dict(zip(knees["series"], knees["batch_size"], strict=True))
    rising = [name for name, known in apart.items() if known and name not in sizes]
    alike = [name for name, known in apart.items() if known is False]
    few = [name for name, known in apart.items() if known is None]
    return [
        *(["Knees: " + ", ".join(f"{name} at batch {size}" for name, size in sizes.items()) + "."] if sizes else []),
        *([f"Still rising at the largest size measured: {', '.join(rising)}."] if rising else []),
        *([f"The fastest size is not distinguishable from the slowest: {', '.join(alike)}."] if alike else []),
        *([f"With fewer than 3 pairs it is not known whether sizes differ: {', '.join(few)}."] if few else []),
    ]


def predictions(trials: pd.DataFrame) -> list[str]:
    """What a straight line through the step times of each series predicts; marked as predicted."""
    fits = prediction.fit(trials).dropna(subset=["batch_size_at_90_percent"])
    fits = fits[fits["sizes"] >= FEWEST_SIZES].head(MOST_SERIES)
    rows: list[dict[Any, Any]] = fits.to_dict("records")
    names = costs.with_environment([naming.name(row, rows, sized=False) for row in rows], rows)
    told = []
    for row, setting in zip(rows, names, strict=True):
        error = row["leave_one_out_error"]
        checked = (
            "not checked: that takes 4 sizes"
            if pd.isna(error)
            else f"a size left out is missed by up to {percent(error)}"
        )
        peak, farthest = f"{number(row['peak_images_per_second'])} images/s", FARTHEST * row["largest_batch_size"]
        if row["batch_size_at_90_percent"] <= farthest:
            told.append(f"{setting} at batch {row['batch_size_at_90_percent']:,.0f} (peak {peak}; {checked})")
        else:
            told.append(f"{setting} not by batch {farthest:,.0f}, as far as the line goes ({checked})")
    line = "Predicted from a line through the step times, not measured: 90 % of the peak rate is reached by"
    return [f"{line} {'; '.join(told)}."] if told else []


def climbs(part: Part) -> Section:
    """The waterfall of a ladder."""
    rungs = ladder.rungs(part.trials)
    title = "What the speedup is made of"
    if rungs.empty:
        return Section(key="ladder", title=title, absent="no ladder has both its ends yet")
    return Section(
        key="ladder",
        title=title,
        reading="From the blog's recipe at the top to the tuned one, one change per line. Each bar goes from the rate "
        "before the change to the rate with it; beside it the rate, and the paired ratio to the line above with its "
        "95 % interval.",
        findings=(*ladder.summary(rungs), *ladder.left_out(part.trials, rungs)),
        figure=amounts.waterfall(rungs),
        data=rungs,
    )


def learning(part: Part, measured: pd.DataFrame) -> Section:
    """Learning curves, and how long each setting takes to be as accurate as the others."""
    title = "Learning, and time to accuracy"
    epochs = part.tables.epochs.merge(part.trials[["trial_id", "cell_id", "status"]], on="trial_id")
    epochs = epochs[(epochs["status"] == "ok")].dropna(subset=["test_accuracy"])
    if epochs.empty:
        return Section(key="learning", title=title, absent="no whole epochs were trained (--epochs trains them)")
    epochs = epochs.sort_values(["trial_id", "epoch"])
    epochs["elapsed_seconds"] = epochs.groupby("trial_id")["seconds"].cumsum()
    means = epochs.groupby(["cell_id", "epoch"], as_index=False)[
        ["elapsed_seconds", "test_accuracy", "train_loss"]
    ].mean()
    table = measured[["cell_id", "setting"]].merge(means, on="cell_id").drop(columns="cell_id")
    table["epoch"] += 1
    kept = table["setting"].unique()[:MOST_SERIES]
    return Section(
        key="learning",
        title=title,
        reading="Left: test accuracy after each epoch; recipes that learn the same lie on one line. Right: the same "
        "against seconds of training, evaluation not counted; further left is sooner. Means over repeats.",
        findings=(
            *time_to_accuracy(table, int(epochs.groupby("cell_id")["trial_id"].nunique().min())),
            *([f"The {len(kept)} fastest settings are drawn."] if len(kept) < table["setting"].nunique() else []),
        ),
        figure=amounts.learning(table[table["setting"].isin(kept)]),
        data=table,
    )


def time_to_accuracy(table: pd.DataFrame, repeats: int) -> list[str]:
    """Say how long each setting trains until it is nearly as accurate as all of them become, soonest first.

    Only nearly, because the least accurate setting reaches its highest accuracy in its luckiest epoch alone. Times are
    interpolated between epochs.

    Args:
        table: `setting`, `epoch`, `elapsed_seconds`, `test_accuracy`, in the order of epochs.
        repeats: the smallest number of repeats that a setting's means are of.
    """
    target = NEARLY * table.groupby("setting")["test_accuracy"].max().min()
    reached = {str(setting): _seconds_until(rows, target) for setting, rows in table.groupby("setting")}
    soonest = sorted(reached, key=reached.__getitem__)
    told = ", ".join(f"{setting} {duration(reached[setting])}" for setting in soonest)
    why = "With fewer than 3 repeats the" if repeats < MINIMUM_REPEATS else "No interval is claimed: the"
    doubt = f" {why} order of close ones may be chance." if len(reached) > 1 else ""
    highest = f"{target:.3f} ({percent(NEARLY)} of the highest that every setting reached)"
    return [f"Time to a test accuracy of {highest}: {told}.{doubt}"]


def _seconds_until(rows: pd.DataFrame, target: float) -> float:
    """When the accuracy of a setting first reaches the target, interpolated between epochs."""
    seconds, accuracy = (rows[column].to_numpy() for column in ("elapsed_seconds", "test_accuracy"))
    after = int((accuracy >= target).argmax())
    around = [max(after - 1, 0), after]
    return float(np.interp(target, accuracy[around], seconds[around]))
