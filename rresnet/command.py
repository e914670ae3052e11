"""The `rresnet` command: tools around the experiments."""

import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from rresnet.cli import INTERRUPTED, OK, SOME_FAILED, WRONG_REQUEST
from rresnet.config import UsageError
from rresnet.store import StoreError

DESCRIPTION = """What should you train on? Tools around the experiments.

    rresnet doctor                      is this machine fit to be measured?
    rresnet report results              a page to look at, and a summary to paste
    python experiments/compare.py       which settings train fastest, and by how much
"""


def doctor(*, seconds: float = 2.0, results_dir: Path = Path("results"), advice: bool = True) -> bool:
    """Print the machine, its limits, and what would make its figures doubtful. Exit code 1 if anything would.

    Args:
        seconds: how long to watch what goes on.
        results_dir: where results would be written.
        advice: say with each finding what to do about it.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds must be above 0, got {seconds}")
    from rresnet import doctor as checks  # imports torch, which takes seconds

    return checks.examine(Console(), seconds=seconds, results_dir=results_dir, advice=advice)


def report(
    results: Annotated[tuple[Path, ...], tyro.conf.Positional] = (Path("results"),),
    *,
    out: Path | None = None,
    run: tuple[str, ...] = (),
    price: tuple[str, ...] = (),
    with_reference: bool = False,
) -> bool:
    """Write one HTML page, its figures as PNG and SVG, and a Markdown summary of the runs in results folders.

    Args:
        results: results folders. Runs and machines are kept apart.
        out: folder to write to. Default: report in the first results folder.
        run: ids of the runs that are wanted. Default: all of them, the newest first.
        price: what an hour of a machine costs, as "gpu=4.10/h", or a .toml file with date and source.
        with_reference: show the package's reference results too, marked as measured elsewhere.
    """
    if not results:
        raise UsageError("rresnet report needs at least one results folder")
    from rresnet import report as reporting  # imports pandas and matplotlib, which takes seconds

    reporting.write(results, Console(), out=out, runs=run, prices=price, with_reference=with_reference)
    return True


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        fine = tyro.extras.subcommand_cli_from_dict(
            {"doctor": doctor, "report": report},
            prog="rresnet",
            description=DESCRIPTION,
            args=given or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return OK if fine else SOME_FAILED
    except (UsageError, StoreError) as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        return INTERRUPTED
