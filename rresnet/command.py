"""The `rresnet` command: tools around the experiments."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from rresnet import __version__, usage
from rresnet.cell import UsageError
from rresnet.tables import place
from rresnet.terminal import counted, say
from rresnet.usage import INTERRUPTED, OK, SOME_FAILED, WRONG_REQUEST, complain

DESCRIPTION = """What should you train on? Measure it, then look at the results with the commands below.

Start here:
  rresnet doctor                 is this machine fit to be measured?
  python experiments/compare.py  which settings train fastest, and by how much
  rresnet report results         a page to look at, and a summary to paste
  rresnet --version              the installed version

Tab completion, here for bash (an experiment run as experiments/compare.py takes the same flag):
  rresnet --tyro-print-completion bash > rresnet.sh
  source rresnet.sh
"""
UNSET = tyro.conf.arg(help_behavior_hint="")  # shows no default: the help itself says what happens without the flag


def doctor(*, seconds: float = 2.0, results_dir: str = "results", advice: Annotated[bool, UNSET] = True) -> bool:
    """Print the machine, its limits, and what would make its figures doubtful (exit code 1 if anything would).

    Examples:
      rresnet doctor
      rresnet doctor --seconds 10 --results-dir /mnt/results

    Args:
        seconds: how long to watch the machine.
        results_dir: where results would be written: a folder or a URL.
        advice: --no-advice names the findings without saying what to do about them.
    """
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--seconds must be above 0, got {seconds}")
    from rresnet import doctor as checks  # imports torch, which takes seconds

    return checks.examine(usage.Output(), seconds=seconds, results_dir=results_dir, advice=advice)


def report(
    results: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RESULTS ...]")] = (
        Path("results"),
    ),
    *,
    out: Annotated[str | None, UNSET] = None,
    run: Annotated[tuple[str, ...], UNSET, tyro.conf.arg(metavar="ID ...")] = (),
    price: Annotated[tuple[str, ...], UNSET, tyro.conf.arg(metavar="PRICE ...")] = (),
) -> bool:
    """Write one HTML page, its figures as files, and a Markdown summary of results.

    Examples:
      rresnet report results
      rresnet report results --price "gpu=4.10 USD/h" --price "cpu=0.40 USD/h"
      rresnet report mine theirs --out page

    Args:
        results: results folders. Runs and machines are kept apart.
        out: folder to write to. Default: report in the first results folder.
        run: ids of the runs to report. Default: all of them, the newest first.
        price: what an hour of a machine costs, for example "gpu=4.10 USD/h", or a .toml file with date and source.
    """
    if not results:
        raise UsageError("rresnet report needs at least one results folder")
    _check_named(out)
    from rresnet.reporting import report as reporting  # imports pandas and matplotlib, which takes seconds

    reporting.write(results, usage.Output(), out=out, runs=run, prices=price)
    return True


def diff(
    a: tyro.conf.Positional[str],
    b: tyro.conf.Positional[str],
    *,
    format: Literal["text", "markdown", "json"] = "text",
    fail_on_regression: Annotated[str | None, UNSET, tyro.conf.arg(metavar="SHARE")] = None,
) -> bool:
    """Compare two sets of results: what is better, worse or not distinguishable.

    Examples:
      rresnet diff before after
      rresnet diff results@3f2a1c9 results@8be04d1 --format markdown
      rresnet diff before after --fail-on-regression 5%

    Args:
        a: the baseline: a results folder, FOLDER@RUN_ID or FOLDER@COMMIT.
        b: the candidate, likewise.
        format: how to print it.
        fail_on_regression: exit code 1 if a setting fails now, or is distinguishably slower by more than this, say 5%.
    """
    from rresnet.analysis import diff as diffs
    from rresnet.analysis import diff_text

    share = None if fail_on_regression is None else _share(fail_on_regression)
    found = diffs.compare(diffs.read_rows(a), diffs.read_rows(b), names=(a, b))
    with usage.printing():  # if nobody reads on, the exit code still reports regressions
        say(Console(), diff_text.render(found, format, share=share))
    return share is None or not found.regressions(share)


def export(
    results: tyro.conf.Positional[Path],
    *,
    format: Literal["csv", "json", "tensorboard", "mlflow"],
    table: Literal["trials", "windows", "epochs", "losses"] = "trials",
    out: Annotated[str | None, UNSET] = None,
) -> bool:
    """Write the tables for tools that do not read Parquet.

    Examples:
      rresnet export results --format csv > trials.csv
      rresnet export results --format json --table windows --out windows.json
      rresnet export results --format tensorboard

    Args:
        results: results folder.
        format: csv and json write one table; tensorboard and mlflow what they can show of the trials.
        table: which table, for csv and json.
        out: csv and json: the file (default: print).
            tensorboard: the folder (default: RESULTS/tensorboard).
            mlflow: the URI of its store (default: sqlite:///RESULTS/mlflow.db).
    """
    _check_named(out)
    if table != "trials" and format in ("tensorboard", "mlflow"):
        raise UsageError(f"--table is for csv and json, and {format} shows what it can of the trials: leave it out")
    from rresnet.reporting import export as exports

    rows = exports.table(results, table)
    if format in ("csv", "json"):
        content = exports.to_csv(rows) if format == "csv" else exports.to_json(rows)
        if out is None:
            with usage.printing():
                sys.stdout.buffer.write(content)  # UTF-8, whatever the terminal has
                sys.stdout.flush()
        else:
            exports.write(Path(out), content)
        return True
    from rresnet.analysis import frames
    from rresnet.reporting import trackers

    if format == "tensorboard":
        folder = _local(out or place.at(results).full_name("tensorboard"))
        count = trackers.to_tensorboard(frames.read(results), folder)
        say(usage.Output(), f"{counted(count, 'setting')} with ok trials in {folder}: tensorboard --logdir {folder}")
    else:
        uri = out or f"sqlite:///{_local(place.at(results).full_name('mlflow.db'))}"
        added = trackers.to_mlflow(frames.read(results), uri)
        say(usage.Output(), f"{counted(added, 'run')} added to {uri}: mlflow ui --backend-store-uri {uri}")
    return True


def _check_named(out: str | None) -> None:
    """Raise UsageError for an empty name, which a script gives whose variable is not set."""
    if out == "":
        raise UsageError("--out names nothing: give a name, or leave it out")


def _local(path: str) -> Path:
    """The path of a file or folder to write. Raises UsageError if it is in object storage."""
    if "://" in path:
        raise UsageError(f"{path} is in object storage, where this format can't be written: give --out a folder here")
    return Path(path)


def _share(text: str) -> float:
    """Parse `5%` or `0.05` as a share of 1. Raises UsageError if it is neither, or not from 0 to under 1."""
    try:
        number = text.strip()
        share = float(number.removesuffix("%")) / 100 if number.endswith("%") else float(number)
    except ValueError:
        share = float("nan")
    if not 0 <= share < 1:
        raise UsageError(f"--fail-on-regression must be from 0% to under 100%, for example 5% or 0.05, got {text!r}")
    return share


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return the exit code."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given == ["--version"]:
            with usage.printing():
                print(f"rresnet {__version__}", flush=True)
            return OK
        commands: dict[str, Callable[..., bool]] = {"doctor": doctor, "report": report, "diff": diff, "export": export}
        with usage.prepared():
            fine = usage.command(commands, prog="rresnet", description=DESCRIPTION, arguments=given)
        return OK if fine else SOME_FAILED
    except UsageError as error:
        complain(f"error: {error}", "red")
        return WRONG_REQUEST
    except KeyboardInterrupt:
        return INTERRUPTED
