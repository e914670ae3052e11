"""The sections on what training uses: time, the machine's limit, memory, energy, money."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd

from rresnet.analysis.prices import Price, used
from rresnet.figures import amounts, bars
from rresnet.reporting.parts import Part
from rresnet.reporting.section import MOST_LINES, Section, left_out
from rresnet.terminal import percent

PHASES = {
    "startup_seconds": "start-up",
    "compile_seconds": "compilation",
    "warmup_seconds": "warm-up",
    "measured_seconds": "training",
    "evaluation_seconds": "evaluation",
    "clocks_seconds": "clocks",
}
CLOCKS = {
    "images_per_second": "training",
    "compute_images_per_second": "step alone",
    "input_images_per_second": "input alone",
}


def time(part: Part, measured: pd.DataFrame) -> Section:
    """Where the seconds of each setting's trials went."""
    title = "Where the time goes"
    ok = part.trials[part.trials["status"] == "ok"]
    evaluated = part.tables.epochs.groupby("trial_id")["evaluation_seconds"].sum(min_count=1)
    spent = ok.assign(evaluation_seconds=ok["trial_id"].map(evaluated))
    table = _by_setting(spent.groupby("cell_id")[list(PHASES)].sum(min_count=1), measured, PHASES)
    if table.empty:
        return Section(key="time", title=title, absent="no row says how its time was spent")
    whole, training = table.sum().sum(), table["training"].sum() if "training" in table else 0.0
    return Section(
        key="time",
        title=title,
        reading="Seconds of all the trials of a setting that ended ok, one kind after another. A setting starts, "
        "compiles and warms up once in each process; only training enters the speeds. Clocks: timing the step and the "
        "input alone.",
        findings=(f"{percent(training / whole)} of {whole:,.0f} s was measured training.", *left_out(len(table))),
        figure=bars.stacked(table.head(MOST_LINES), "seconds, over all its trials"),
        data=table.reset_index(),
    )


def clocks(part: Part, measured: pd.DataFrame) -> Section:
    """The rates of training, of the step alone and of the input alone."""
    title = "Three clocks"
    ok = part.trials[part.trials["status"] == "ok"]
    timed = ok.dropna(subset=list(CLOCKS)[1:], how="all")  # all from the same trials, to be compared
    table = _by_setting(timed.groupby("cell_id")[list(CLOCKS)].median(), measured, CLOCKS)
    if len(table.columns) < 2:
        return Section(key="clocks", title=title, absent="the step and the input were not timed alone")
    bound = [f"{what} ({n} of {len(measured)} settings)" for what, n in measured["bottleneck"].value_counts().items()]
    return Section(
        key="clocks",
        title=title,
        reading="Images/s of training, of the training step alone on a batch that is already there, and of the input "
        "alone: medians over the trials that timed all of them. Apart from noise, training is no faster than the lower "
        "of the two hollow marks: that is the one to work on.",
        findings=(*((f"Bound by {', '.join(bound)}.",) if bound else ()), *left_out(len(table))),
        figure=bars.clocks(table.head(MOST_LINES)),
        data=table.reset_index(),
    )


def limit(measured: pd.DataFrame) -> Section:
    """How close each setting comes to the machine's own measured rate."""
    bound = measured.dropna(subset=["bottleneck"])
    return _amounts(
        measured,
        "percent_of_limit",
        "% of the machine's matrix rate",
        Section(
            key="limit",
            title="Share of the machine's limit",
            reading="Floating-point operations a second of training, over those of a large matrix product that was "
            "timed on the same machine in the same precision. Beside the value: what the setting is bound by.",
            absent="the machine's own rates were not timed beside any setting",
        ),
        notes=dict(zip(bound["setting"], bound["bottleneck"], strict=True)),
    )


def memory(measured: pd.DataFrame) -> Section:
    """Each setting's peak memory."""
    return _amounts(
        measured.assign(peak_mebibytes=measured["peak_memory_bytes"].astype(float) / 2**20),
        "peak_mebibytes",
        "MiB at the peak",
        Section(
            key="memory",
            title="Memory",
            reading="The most memory that the setting's own tensors held at once on their device, over its trials.",
            absent="no peak memory is known",
        ),
    )


def energy(measured: pd.DataFrame, costs: pd.DataFrame) -> Section:
    """Joules by setting, where the device counts them."""
    return _amounts(
        measured[["cell_id"]].merge(costs[["cell_id", "setting", "joules_per_1000_images"]], on="cell_id"),
        "joules_per_1000_images",
        "J for 1,000 images",
        Section(
            key="energy",
            title="Energy",
            reading="Joules that the device used to train 1,000 images, by its own counter; the rest of the machine is "
            "not included.",
            absent="this machine's energy could not be read",
        ),
    )


def cost(costs: pd.DataFrame, prices: Sequence[Price]) -> Section:
    """Money against time."""
    priced = costs.dropna(subset=["epoch_cost", "epoch_seconds"])
    if priced.empty:
        why = "no price fits this machine" if prices else 'no price was given (--price "gpu=4.10 USD/h")'
        return Section(key="cost", title="Cost", absent=why)
    columns = ["setting", "nodes", "epoch_seconds", "epoch_cost", "cost_per_1000_images", "currency", "on_front"]
    return Section(
        key="cost",
        title="Cost",
        reading="The time and the cost of an epoch, for all its machines. Nearer the corner is better; filled "
        "marks are settings that no other beats in time, cost and energy at once.",
        findings=tuple(_price_text(price) for price in used(costs, prices)),
        figure=amounts.costs(priced, priced["currency"].iloc[0] or "price"),
        data=priced[columns],
    )


def _price_text(price: Price) -> str:
    """A price, with its date and source as far as they are known."""
    about = ", ".join(filter(None, (price.date, price.source)))
    whole_cents = round(price.per_hour, 2) == price.per_hour
    per_hour = f"{price.per_hour:.2f}" if whole_cents else f"{price.per_hour:g}"
    amount = " ".join(filter(None, (per_hour, price.currency)))
    return f"Price: {price.what} {amount} an hour{f' ({about})' if about else ''}."


def _amounts(
    cells: pd.DataFrame, column: str, unit: str, section: Section, notes: Mapping[str, str] | None = None
) -> Section:
    """The section with a bar for each cell that has a value; unchanged if none has."""
    known = cells.dropna(subset=[column])
    if known.empty:
        return section
    drawn = known.head(MOST_LINES)
    values = dict(zip(drawn["setting"], drawn[column].astype(float), strict=True))
    return replace(
        section,
        absent="",
        findings=(*section.findings, *left_out(len(known))),
        figure=bars.amounts(values, unit, notes=notes),
        data=known[["setting", column]],
    )


def _by_setting(table: pd.DataFrame, measured: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Rows by `cell_id` as rows by setting, in the order of `measured`, with other `names` and no empty column."""
    found = table.reindex(measured["cell_id"]).set_axis(pd.Index(measured["setting"], name="setting"))
    return found.rename(columns=names).dropna(axis="columns", how="all").astype(float)
