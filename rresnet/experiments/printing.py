"""The answer in the terminal: a table of the cells, the fastest in a sentence, and what makes it doubtful."""

from typing import Any

import pandas as pd
from rich.console import Console

from rresnet.analysis import answer, load
from rresnet.terminal import print_table, say

AUTO_LOOKS = " (--batch-size auto looks for the fastest)"

COLUMNS = (
    "of limit: share of the machine's fastest matrix products. bound by: what limits the speed; empty where too little "
    "was measured to tell."
)
NO_GPU = (
    "No GPU was measured. To add GPU rows, run the same command on a machine that has one, "
    "or with --address HOST:6379 to join a Ray cluster that has one."
)


def findings(trials: pd.DataFrame, console: Console, *, searched: bool = False) -> None:
    """Print the table of one run's cells, and the fastest of them in a sentence.

    `searched` says that larger batch sizes have been looked for (`--batch-size auto`), so none need be mentioned.
    """
    found = answer.Answer(trials)
    _print_table(found.cells, console)
    larger = [] if searched else found.edge(AUTO_LOOKS)
    say(console, [found.sentence(), *larger, *found.scatter(), *found.noise_floor()])


def remarks(trials: pd.DataFrame, console: Console, *, advice: bool = True) -> None:
    """Print what makes one run's findings doubtful, and what they lack; with `advice`, also what to do about it."""
    found = answer.Answer(trials)
    say(console, found.states())
    for flag, count, what in load.flagged(trials):
        told = f": {what}" if advice and what else ""
        say(console, f"{count} of {len(trials)} rows {'is' if count == 1 else 'are'} flagged {flag}{told}.")
    if "gpu" not in {cell["device"] for cell in found.cells}:
        say(console, NO_GPU, "dim")


def _print_table(cells: list[dict[Any, Any]], console: Console) -> None:
    others = [cell for cell in cells if not cell["is_reference"]]
    columns = {
        "setting": [cell["setting"] for cell in cells],
        "images/s": [answer.rate(cell) for cell in cells],
        "epoch": [answer.epoch(cell) for cell in cells],
        "speedup": [answer.speedup(cell) for cell in cells if others],
        "test accuracy": [answer.formatted(cell["test_accuracy"], "{:.3f}") for cell in cells],
        "of limit": [answer.of_limit(cell) for cell in cells],
        "bound by": [answer.formatted(cell["bottleneck"], "{}") for cell in cells],
        "trials": [cell["statuses"] for cell in cells],
    }
    reference = [cell["setting"] for cell in cells if cell["is_reference"] and others]
    against = "".join(f"Speedup over {setting}, paired by repeat. " for setting in reference)
    mark = f"\n{answer.MARKED}" if any(cell["distinguishable"] is False for cell in cells) else ""
    each = "\nBatch sizes are those of each worker." if any(cell["num_workers"] > 1 for cell in cells) else ""
    terms = f"\n{COLUMNS}" if any(columns["of limit"]) else ""
    bounds = [cell[low] for cell in cells for low in ("low", "speedup_low")]
    intervals = (
        "In brackets: 95 % intervals over repeats, with room for slow drift." if any(map(pd.notna, bounds)) else ""
    )
    print_table(
        console,
        {heading: texts for heading, texts in columns.items() if any(texts)},
        caption=f"{against}{intervals}{mark}{each}{terms}".strip(),
        left=("setting", "bound by", "trials"),
        broken="setting",
        left_out=("bound by", "of limit", "test accuracy", "epoch"),
        red=[number for number, cell in enumerate(cells) if not cell["repeats"]],
    )
