"""How far off is a predicted batch size? Each is left out in turn and predicted from the others.

    python benchmarks/prediction.py                     on the reference results
    python benchmarks/prediction.py --results results   on your own

Prints measured and predicted images a second for each series of at least 4 batch sizes, and the largest error.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from common import arguments
from rich import box
from rich.console import Console
from rich.table import Table

from rresnet.analysis import prediction
from rresnet.analysis.alike import AVERAGED
from rresnet.analysis.frames import read

REFERENCE = Path(__file__).parents[1] / "results" / "reference"


def rows(trials: pd.DataFrame) -> list[list[str]]:
    """A row a series and batch size left out: series, batch size, measured, predicted, error."""
    found = []
    for _, series in trials.groupby([*prediction.SERIES_COLUMNS, *AVERAGED], dropna=False, sort=False):
        sizes = sorted(series["batch_size"].unique())
        for size in sizes if len(sizes) >= prediction.FEWEST_TO_LEAVE_ONE_OUT else ():
            measured = float(np.exp(np.log(series[series["batch_size"] == size]["images_per_second"]).mean()))
            line = prediction.fit(series[series["batch_size"] != size]).iloc[0].to_dict()
            predicted = prediction.predict(line, int(size))
            first = series.iloc[0]
            beyond = not line["smallest_batch_size"] <= size <= line["largest_batch_size"]
            told = f"{predicted / measured - 1:+.1%}{' (beyond the others)' if beyond else ''}"
            found.append(
                [f"{first['device']} {first['recipe']}", str(size), f"{measured:.2f}", f"{predicted:.2f}", told]
            )
    return found


def main() -> int:
    options = arguments(__doc__, results=str(REFERENCE))
    trials = read(options.results).trials
    ok = trials[(trials["status"] == "ok") & (trials["copy"] == 0)]
    found, console = rows(ok), Console(width=120, highlight=False)
    if not found:
        console.print(f"no series of at least {prediction.FEWEST_TO_LEAVE_ONE_OUT} batch sizes")
        return 1
    table = Table("series", "left out", "measured images/s", "predicted", "error", box=box.SIMPLE_HEAD)
    for row in found:
        table.add_row(*row)
    console.print(table)
    errors = prediction.fit(ok).dropna(subset=["leave_one_out_error"])
    for line in errors.to_dict("records"):
        console.print(
            f"{line['device']} {line['recipe']}: largest error {line['leave_one_out_error']:.1%}; "
            f"{line['fixed_seconds']:.3g} s a step and {line['seconds_per_image']:.3g} s an image, "
            f"90 % of {line['peak_images_per_second']:.1f} images/s at batch {line['batch_size_at_90_percent']:g}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
