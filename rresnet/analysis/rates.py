"""How fast each cell trains, and how long its trials take: means over repeats, not paired with any other."""

from collections.abc import Sequence

import pandas as pd

from rresnet.analysis.frames import with_all_axes
from rresnet.analysis.pairing import intervals
from rresnet.analysis.statistics import RATE_DRIFT_LIMIT
from rresnet.cell import CELL_COLUMNS, Cell


def by_cell(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per cell: its axes, images a second with interval, epoch seconds, and how its trials ended.

    Epoch seconds and their interval follow from the rate, whether whole epochs were trained or not.
    No pairing shields a rate from the machine's drift, so its interval allows for more of it (`RATE_DRIFT_LIMIT`).
    """
    trials = with_all_axes(trials)
    ok = trials[trials["status"] == "ok"]
    statuses = trials.groupby("cell_id")["status"].value_counts()
    found = trials.drop_duplicates("cell_id").set_index("cell_id")[list(CELL_COLUMNS)]
    found = found.join(_rate_intervals(ok)).join(_summed_up(ok))
    of_rates = {"epoch_seconds": "images_per_second", "epoch_low": "high", "epoch_high": "low"}
    found = found.assign(**{epoch: found["epoch_images"] / found[rate] for epoch, rate in of_rates.items()})
    found["statuses"] = [", ".join(f"{n} {status}" for status, n in statuses[cell].items()) for cell in found.index]
    return found.assign(repeats=found["repeats"].fillna(0).astype(int)).drop(columns="epoch_images").reset_index()


def _rate_intervals(ok: pd.DataFrame) -> pd.DataFrame:
    """For each cell, the mean of its rates with its interval, and how many repeats entered."""
    found = intervals(ok["images_per_second"], ok, "cell_id", drift_limit=RATE_DRIFT_LIMIT)
    rows = {cell_id: (rate.estimate, rate.low, rate.high, rate.count) for cell_id, rate in found.items()}
    columns = ["images_per_second", "low", "high", "repeats"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype="float64")


def _summed_up(ok: pd.DataFrame) -> pd.DataFrame:
    """For each cell, what else its ok rows give together."""
    measured = ["epoch_seconds", "images_per_second", "energy_joules", "measured_images", "peak_memory_bytes"]
    numbers = ok[[*measured, "percent_of_limit", "test_accuracy"]].astype("float64")
    numbers["epoch_images"] = numbers["epoch_seconds"] * numbers["images_per_second"]
    per_image = numbers["energy_joules"].where(numbers["energy_joules"] > 0) / numbers["measured_images"]
    numbers["epoch_joules"], numbers["joules_per_1000_images"] = per_image * numbers["epoch_images"], 1000 * per_image
    of_cell = numbers.groupby(ok["cell_id"])
    votes = ok.dropna(subset=["bottleneck"]).groupby("cell_id")["bottleneck"]
    return pd.DataFrame(
        {
            **of_cell[["epoch_images", "percent_of_limit"]].median(),
            **of_cell[["epoch_joules", "joules_per_1000_images", "test_accuracy"]].mean(),
            "peak_memory_bytes": of_cell["peak_memory_bytes"].max(),
            "epoch_seconds_kind": ok.groupby("cell_id")["epoch_seconds_kind"].first(),
            "bottleneck": votes.agg(lambda cast: cast.mode()[0]),  # in a tie, the first by name
        }
    )


def trial_seconds(trials: pd.DataFrame, cells: Sequence[Cell], seconds: float) -> dict[str, tuple[float, float]]:
    """Predict how long a trial of each cell takes: its first in a process, which builds and warms up, and a later one.

    From earlier ok rows of the cell, or else of its device, model and image size. A cell without either is left out.
    Besides what those trials took in the mean, it is measured for `seconds`, or for one step if that is longer; whole
    epochs for as long as its own rows were.
    """
    ok = with_all_axes(trials)
    ok = ok[ok["status"] == "ok"].dropna(subset=["started_at", "finished_at", "measured_seconds"])
    ok = ok.sort_values("started_at")
    ok["first"] = ~ok.duplicated(["run_id", "hostname", "process", "cell_id"])
    ok["rest"] = (ok["finished_at"] - ok["started_at"]).dt.total_seconds() - ok["measured_seconds"]
    found = {}
    for cell in dict.fromkeys(cells):
        rows = ok[ok["cell_id"] == cell.cell_id]
        if rows.empty and not cell.epochs:
            same = [ok[axis] == getattr(cell, axis) for axis in ("device", "model", "image_size")]
            rows = ok[same[0] & same[1] & same[2] & ok["epochs"].isna()]
        if not rows.empty:
            step = cell.global_batch_size / float(rows["images_per_second"].mean())
            measured = float(rows["measured_seconds"].mean()) if cell.epochs else max(seconds, step)
            rest = rows.groupby("first")["rest"].mean()
            found[cell.cell_id] = (measured + float(rest[True]), measured + float(rest.get(False, rest[True])))
    return found
