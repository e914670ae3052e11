"""Whether compiling pays: how much faster a compiled step is than the same step uncompiled, and when that pays off."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rresnet import naming
from rresnet.analysis import answer, comparison, frames, pairing, rates
from rresnet.analysis.statistics import Interval
from rresnet.cell import CELL_COLUMNS
from rresnet.terminal import duration


def summary(trials: pd.DataFrame) -> list[str]:
    """For each compiled setting that was also measured uncompiled, say in a sentence what compiling gains and costs."""
    trials = frames.with_all_axes(trials)
    ok = trials[(trials["status"] == "ok") & (trials["copy"] == 0)]
    cells: list[dict[Any, Any]] = rates.by_cell(ok).to_dict("records")
    floors = comparison.noise_floors(trials)
    axes = [axis for axis in CELL_COLUMNS if axis not in ("execution", "kernels")]  # the compiler makes its own kernels
    lines = []
    for compiled in (cell for cell in cells if cell["execution"] == "compile"):
        alike = [cell for cell in cells if all(frames.same(cell[axis], compiled[axis]) for axis in axes)]
        others = [cell for cell in alike if cell is not compiled]
        if others:
            other = max(others, key=lambda cell: cell["images_per_second"])
            as_compiled = {axis: compiled[axis] for axis in ("execution", "kernels")}
            setting = naming.name(compiled, [cell | as_compiled for cell in cells])
            paired = pairing.ratio(ok, compiled["cell_id"], other["cell_id"])
            told = _comparison(ok, compiled, other, comparison.with_floor(paired, floors, compiled, other))
            lines.append(f"{setting}, compiled over {other['execution']}: {told}.")
    return lines


def _comparison(ok: pd.DataFrame, compiled: Mapping[Any, Any], other: Mapping[Any, Any], ratio: Interval | None) -> str:
    rows, others = (ok[ok["cell_id"] == cell["cell_id"]] for cell in (compiled, other))
    seconds = rows.groupby("compile_cache")["compile_seconds"].median()
    costs = [f"{duration(seconds[kind])} {kind}" for kind in ("cold", "warm") if kind in seconds]
    cost = f"compiling takes {' and '.join(costs)}" if costs else "how long compiling took is not known"
    if ratio is None:
        return f"never measured side by side; {cost}"
    faster = f"{answer.ratio_text(ratio.estimate, ratio.low, ratio.high)} times the images/s"
    if not ratio.distinguishable:  # also if there are too few repeats for an interval
        return f"{faster}{', not distinguishable' if ratio.distinguishable is False else ''}; {cost}"
    if ratio.estimate <= 1 or not costs:
        return f"{faster}; {cost}"
    capturing = others["compile_seconds"].dropna()  # a graph takes a while to be made ready, too
    spent = seconds.get("cold", seconds.max()) - (capturing.median() if len(capturing) else 0.0)
    if spent <= 0:
        return f"{faster}; {cost}, no longer than making the {other['execution']} step ready"
    after, soonest, latest = (_pays_after(spent, bound) for bound in (ratio.estimate, *reversed(ratio.bounds)))
    return f"{faster}; {cost}, and pays off if training takes longer than {after} ({soonest} - {latest})"


def _pays_after(seconds: float, ratio: float) -> str:
    """How long training must take for `seconds` more of making ready to pay.

    t = seconds + t / ratio at t = seconds ratio / (ratio - 1).
    """
    return duration(seconds * ratio / (ratio - 1)) if ratio > 1 else "never"
