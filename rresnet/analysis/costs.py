"""What each setting takes in time, money and energy, and which settings no other beats in all of them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rresnet.analysis import alike, frames, rates
from rresnet.analysis.prices import Price, price_of
from rresnet.cell import UsageError
from rresnet.naming import name
from rresnet.terminal import short_hash


def costs(trials: pd.DataFrame, prices: Sequence[Price] = ()) -> pd.DataFrame:
    """What each cell takes on each machine in time, money and energy, and which cells no other beats in all of them.

    A price is for one machine and hour, so a cost counts machines: `num_nodes` of the trials table if it has that
    column, else 1. A price by name takes precedence over one by device kind, and a longer name over a shorter one. For
    GPU trials the name of the GPU or of the machine counts, for CPU trials that of the processor or of the machine. A
    cost's interval follows from that of the rate.

    Args:
        trials: rows of the trials table, of any number of runs and machines; second copies (`--aa`) are left out, and
            probes of `--batch-size auto` unless nothing else is ok.
        prices: from `prices`.

    Returns:
        One row for each cell, machine and its software, commit and data: `cell_id`, `setting` (its name), the axes,
        `hostname`, `environment_fingerprint`, `git_commit`, `dataset_fingerprint`, `images_per_second`, `low`, `high`,
        `epoch_seconds`, `epoch_low`, `epoch_high`, `nodes`, `price_per_hour`, `epoch_cost`, `epoch_cost_low`,
        `epoch_cost_high`, `cost_per_1000_images`, `epoch_joules`, `joules_per_1000_images`, `currency`, `on_front`. A
        cell is `on_front` unless another of the same model, data (by content) and image size is at least as good in all
        of time, cost and energy that are known of both, and better in one (estimates, without their intervals). What
        was not measured or has no price is null.

    Raises:
        TypeError: a price is not one of `prices`, but a text, say.
        ValueError: `trials` lack columns, or a row is there twice.
        UsageError: no price fits any of the trials.
    """
    if wrong := [price for price in prices if not isinstance(price, Price)]:
        raise TypeError(f"expected prices as decision.prices reads them, got {wrong[0]!r}")
    trials = frames.checked(trials, [*alike.AVERAGED, "images_per_second", "energy_joules"])
    trials = frames.without_probes(trials)
    first_copies = trials[trials["copy"] == 0]
    ok = first_copies["status"] == "ok"
    never = ~first_copies["cell_id"].isin(first_copies["cell_id"][ok])
    # A trial that failed may not know its machine, so it only counts for a cell that never ended ok.
    rows: list[dict[Any, Any]] = []
    for _, of_machine in first_copies[ok | never].groupby(alike.AVERAGED, dropna=False, sort=False):
        of_cell = dict(list(of_machine.groupby("cell_id")))
        rows += [
            row | _costs_of(row, of_cell[row["cell_id"]], prices)
            for row in rates.by_cell(of_machine).to_dict("records")
        ]
    if rows and prices and all(row["price_per_hour"] is None for row in rows):
        there = sorted({str(v) for c in ("device", "gpu_name", "cpu_model", "hostname") for v in trials[c].dropna()})
        raise UsageError(
            f"no price fits a trial: there are prices for {', '.join(p.what for p in prices)}, "
            f"the trials ran on {', '.join(there)}"
        )
    front = _front(rows)
    named = zip(rows, front, settings(rows), strict=True)
    return pd.DataFrame([row | {"on_front": on, "setting": setting} for row, on, setting in named])


def settings(rows: list[dict[Any, Any]]) -> list[str]:
    """The names of costs' rows: what tells each from the others."""
    # CPU rows do not hold the GPU's driver, but another driver still makes another environment.
    return with_environment([_setting(row, rows) for row in rows], rows)


def with_environment(names: list[str], rows: list[dict[Any, Any]]) -> list[str]:
    """The rows' names, with the environment where several have the same."""
    return [
        f"{of_row} (environment {_version(row['environment_fingerprint'])})" if names.count(of_row) > 1 else of_row
        for row, of_row in zip(rows, names, strict=True)
    ]


def _costs_of(row: Mapping[Any, Any], trials: pd.DataFrame, prices: Sequence[Price]) -> dict[str, Any]:
    first = trials.iloc[0].to_dict()
    nodes = int(row["num_nodes"])
    price = price_of(first, prices)
    an_hour = price.per_hour * nodes if price else None

    def cost(seconds: float | None) -> float | None:
        return None if an_hour is None or pd.isna(seconds) else float(seconds) / 3600 * an_hour

    return {
        **{c: first.get(c) for c in (*alike.AVERAGED, *alike.OF_TWO_SETS)},
        "nodes": nodes,
        "price_per_hour": price.per_hour if price else None,
        "epoch_cost": cost(row["epoch_seconds"]),
        "epoch_cost_low": cost(row["epoch_low"]),
        "epoch_cost_high": cost(row["epoch_high"]),
        "cost_per_1000_images": cost(1000 / row["images_per_second"]),
        "currency": price.currency if price else None,
    }


def _setting(row: Mapping[Any, Any], rows: list[dict[Any, Any]]) -> str:
    """The cell's name, with its machine if there are several, and what differs if a machine measured it twice."""
    there = [r for r in rows if r["hostname"] == row["hostname"]]
    parts = [name(row, rows)]
    if pd.notna(row["hostname"]) and len(there) < len(rows):
        parts.append(f"on {row['hostname']}")
    twice = [r for r in there if r["cell_id"] == row["cell_id"]]
    told = [
        f"{c.removesuffix('_version').replace('_', ' ')} {_version(row[c])}"
        for c in alike.OF_TWO_SETS
        if len({_version(r[c]) for r in twice}) > 1
    ]
    return " ".join([*parts, *([f"({', '.join(told)})"] if told else [])])


def _version(value: Any) -> str:
    return "not known" if pd.isna(value) else short_hash(str(value))


def _front(rows: list[dict[Any, Any]]) -> list[bool | None]:
    columns = ["cost_per_1000_images", "joules_per_1000_images"]
    amounts = [[1 / row["images_per_second"], *(row[c] for c in columns)] for row in rows]
    values = np.array(amounts, dtype=np.float64).reshape(-1, 3)

    def beaten(i: int) -> bool:
        others = [j for j, row in enumerate(rows) if all(frames.same(row[c], rows[i][c]) for c in alike.TASK)]
        for j in others:
            both = ~(np.isnan(values[i]) | np.isnan(values[j]))
            if both.any() and (values[j] <= values[i])[both].all() and (values[j] < values[i])[both].any():
                return True
        return False

    return [None if np.isnan(values[i, 0]) else not beaten(i) for i in range(len(rows))]
