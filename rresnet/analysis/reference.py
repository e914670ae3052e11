"""Rows that come with the checkout, measured by this code on another machine, to show beside one's own."""

from dataclasses import replace
from pathlib import Path

from rresnet.analysis.frames import Tables
from rresnet.analysis.frames import read as read_results
from rresnet.tables.place import StoreError

FOLDER = Path(__file__).parents[2] / "results" / "reference"
ELSEWHERE = "(measured elsewhere)"


def read(folder: Path = FOLDER) -> Tables:
    """Read the reference results; each `hostname` ends in `(measured elsewhere)`, so that no row passes for one's own.

    They are never paired with one's own rows (pairs are within one run and machine), nor averaged with them.

    Raises:
        StoreError: there are none, because this is not a checkout.
    """
    if not (folder / "trials").is_dir():
        raise StoreError(
            f"no reference results in {folder}: they come with a checkout of rresnet, not with an installed copy"
        )
    tables = read_results(folder)
    named = tables.trials["hostname"].fillna("unknown") + f" {ELSEWHERE}"
    return replace(tables, trials=tables.trials.assign(hostname=named))
