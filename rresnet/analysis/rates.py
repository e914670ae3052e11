"""How fast each cell trains, and how long its trials take: means over repeats, not paired with any other."""

from collections.abc import Sequence

import pandas as pd

from rresnet.analysis.frames import with_all_axes
from rresnet.analysis.pairing import in_series
from rresnet.analysis.statistics import RATE_DRIFT_LIMIT, in_order, log_mean_interval
from rresnet.cell import CELL_COLUMNS


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
    values, (repeats, processes, times) = ok["images_per_second"].to_numpy(), in_series(ok)
    rows = {}
    for cell_id, at in ok.groupby("cell_id").indices.items():
        series = in_order(values[at], repeats[at], processes[at], times[at])
        found = log_mean_interval(series, drift_limit=RATE_DRIFT_LIMIT)
        rows[cell_id] = (found.estimate, found.low, found.high, found.count)
    columns = ["images_per_second", "low", "high", "repeats"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype="float64")


def _summed_up(ok: pd.DataFrame) -> pd.DataFrame:
    """For each cell, what else its ok rows give together."""
    measured = ["epoch_seconds", "images_per_second", "energy_joules", "measured_images", "peak_memory_bytes"]
    numbers = ok[[*measured, "percent_of_limit", "test_accuracy"]].astype("float64")
    numbers["epoch_images"] = numbers["epoch_seconds"] * numbers["images_per_second"]
    energy = numbers["energy_joules"].where(numbers["energy_joules"] > 0)
    numbers["epoch_joules"] = energy / numbers["measured_images"] * numbers["epoch_images"]
    of_cell = numbers.groupby(ok["cell_id"])
    votes = ok.dropna(subset=["bottleneck"]).groupby("cell_id")["bottleneck"]
    return pd.DataFrame(
        {
            **of_cell[["epoch_images", "percent_of_limit"]].median(),
            **of_cell[["epoch_joules", "test_accuracy"]].mean(),
            "peak_memory_bytes": of_cell["peak_memory_bytes"].max(),
            "epoch_seconds_kind": ok.groupby("cell_id")["epoch_seconds_kind"].first(),
            "bottleneck": votes.agg(lambda cast: cast.mode()[0]),  # in a tie, the first by name
        }
    )


def trial_seconds(trials: pd.DataFrame, cell_ids: Sequence[str]) -> dict[str, float]:
    """Median seconds that a trial of each cell took, from earlier rows; a cell never run gets the median of all."""
    ended = trials.dropna(subset=["started_at", "finished_at"])
    seconds = (ended["finished_at"] - ended["started_at"]).dt.total_seconds()
    if seconds.empty:
        return {}
    of_cell = seconds.groupby(ended["cell_id"]).median()
    return {cell_id: float(of_cell.get(cell_id, seconds.median())) for cell_id in cell_ids}
