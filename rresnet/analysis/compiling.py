"""Whether compiling pays: how much faster a compiled step is than the same one that is not, and after how long."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from rresnet.analysis import answer, comparison, frames, pairing, rates
from rresnet.analysis.statistics import Interval
from rresnet.cell import CELL_COLUMNS
from rresnet.terminal import duration


def summary(trials: pd.DataFrame) -> list[str]:
    """In a sentence for each compiled setting that was measured otherwise, too: what compiling brings, and costs."""
    trials = frames.with_all_axes(trials)
    ok = trials[(trials["status"] == "ok") & (trials["copy"] == 0)]
    cells: list[dict[Any, Any]] = rates.by_cell(ok).to_dict("records")
    floors, axes = comparison.noise_floors(trials), [axis for axis in CELL_COLUMNS if axis != "execution"]
    lines = []
    for compiled in (cell for cell in cells if cell["execution"] == "compile"):
        alike = [cell for cell in cells if all(frames.same(cell[axis], compiled[axis]) for axis in axes)]
        others = [cell for cell in alike if cell is not compiled]
        if others:
            other = max(others, key=lambda cell: cell["images_per_second"])
            setting = answer.name(compiled, [cell | {"execution": "compile"} for cell in cells])
            ratio = pairing.ratio(ok, compiled["cell_id"], other["cell_id"])
            apart = pairing.distinguishable(ratio, floors.get(compiled["device"])) if ratio else None
            lines.append(f"{setting}, compiled over {other['execution']}: {_comparison(ok, compiled, ratio, apart)}.")
    return lines


def _comparison(ok: pd.DataFrame, compiled: Mapping[Any, Any], ratio: Interval | None, apart: bool | None) -> str:
    rows = ok[ok["cell_id"] == compiled["cell_id"]]
    seconds = rows.groupby("compile_cache")["compile_seconds"].median()
    costs = [f"{duration(seconds[kind])} {kind}" for kind in ("cold", "warm") if kind in seconds]
    cost = f"compiling takes {' and '.join(costs)}" if costs else "how long compiling took is not known"
    if ratio is None:
        return f"never measured side by side; {cost}"
    faster = f"{answer.ratio_text(ratio.estimate, ratio.low, ratio.high)} times the images/s"
    if not apart or ratio.low is None or ratio.high is None:  # too few repeats for an interval, too
        return f"{faster}{', not distinguishable' if apart is False else ''}; {cost}"
    if ratio.estimate <= 1 or not costs:
        return f"{faster}; {cost}"
    spent = seconds.get("cold", seconds.max())
    after, soonest, latest = (_pays_after(spent, bound) for bound in (ratio.estimate, ratio.high, ratio.low))
    return f"{faster}; {cost}, and pays where training takes longer than {after} ({soonest} - {latest})"


def _pays_after(seconds: float, ratio: float) -> str:
    """Training takes t, or t / ratio after s seconds of compiling: as long where t = s ratio / (ratio - 1)."""
    return duration(seconds * ratio / (ratio - 1)) if ratio > 1 else "never"
