"""The command of an experiment: flags in, an exit code out that says how it went."""

import os
import shutil
import signal
import sys
from types import FrameType

import tyro
from rich.console import Console

from rresnet import data, experiment, grid, store
from rresnet.config import Settings, UsageError

OK, SOME_FAILED, WRONG_REQUEST, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143


MESSAGE_WIDTH = 140


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does."""


def main(name: str, description: str, *, defaults: Settings | None = None, cells: experiment.Cells = grid.cells) -> int:
    """Run an experiment from the command line; returns the exit code.

    Args:
        name: the experiment's, which is also the default name of its runs.
        description: what `--help` says: the experiment's docstring.
        defaults: its defaults, where they are not those of `Settings`.
        cells: what it measures, from the settings.
    """
    # tyro cuts the valid values off its messages where a line is short.
    os.environ.setdefault("COLUMNS", str(max(MESSAGE_WIDTH, shutil.get_terminal_size().columns)))
    errors = Console(stderr=True)
    # The console keeps today's stdout: while Ray works, its own output is sent elsewhere.
    console = Console(file=sys.stdout)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        settings = tyro.cli(
            Settings,
            prog=f"{name}.py",
            description=description,
            default=defaults or Settings(),
            config=(tyro.conf.FlagCreatePairsOff,),
        )
        return OK if experiment.run(name, settings, cells, console) else SOME_FAILED
    except (UsageError, data.DataError, store.StoreError) as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return WRONG_REQUEST
    except KeyboardInterrupt as stop:
        again = " ".join(["python", *sys.argv])
        errors.print(
            f"\nStopped; every trial that ended is kept. To continue: {again}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        return TERMINATED if isinstance(stop, Terminated) else INTERRUPTED


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
