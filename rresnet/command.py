"""The `rresnet` command: tools around the experiments."""

import sys

import tyro
from rich.console import Console

from rresnet.cli import INTERRUPTED, OK, SOME_FAILED, WRONG_REQUEST
from rresnet.config import UsageError

DESCRIPTION = """What should you train on? Tools around the experiments.

    rresnet doctor                      is this machine fit to be measured?
    python experiments/compare.py       which settings train fastest, and by how much
"""


def doctor(*, seconds: float = 2.0, results_dir: str = "results", advice: bool = True) -> bool:
    """Print the machine, its limits, and what would make its figures doubtful. Exit code 1 if anything would.

    Args:
        seconds: how long to watch what goes on.
        results_dir: where results would be written: a folder or a URL.
        advice: say with each finding what to do about it.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds must be above 0, got {seconds}")
    from rresnet import doctor as checks  # imports torch, which takes seconds

    return checks.examine(Console(), seconds=seconds, results_dir=results_dir, advice=advice)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        fine = tyro.extras.subcommand_cli_from_dict(
            {"doctor": doctor},
            prog="rresnet",
            description=DESCRIPTION,
            args=given or ["--help"],
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return OK if fine else SOME_FAILED
    except UsageError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return WRONG_REQUEST
    except KeyboardInterrupt:
        return INTERRUPTED
