"""Everything that can die is killed: is anything lost, run twice, damaged or left behind?

    python benchmarks/chaos.py                          (about 45 minutes on two cores; root, for the full disk)
    python benchmarks/chaos.py --checks "writers disk trials drivers" --drivers 2 --trials 3    a short form, 2 minutes

Writers: 8 processes write 200 rows each to one folder while a reader polls. Disk: a file system that is filled up
while a run writes to it. Deaths: see `deaths.py`. Trials: kill -9 of the trial process at random moments, again and
again in one run. Drivers: kill -9 of the command at a random moment of a 12-trial run, then the same command until it
ends.
"""

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pandas as pd
from common import arguments, cell
from deaths import deaths
from place import Place, Verdict, rows, show

import rresnet
from rresnet.cell import Trial
from rresnet.runner import sweep
from rresnet.tables import runs, store
from rresnet.tables.measurement import Measurement, Record

RUN = [sys.executable, str(Path(__file__).parent / "stub_run.py")]


def command(results: Path, *flags: str, seconds: float = 0.2) -> list[str]:
    planned = ["--repeats", "3", "--processes", "1", "--seconds", str(seconds)]
    return [*RUN, *planned, "--results-dir", str(results), *flags]


def left_behind(left: list[str]) -> str:
    return f"left behind: {', '.join(left) or 'nothing'}"


def kill_driver(number: int, undisturbed_seconds: float, folder: Path) -> tuple[pd.DataFrame, list[str], bool]:
    """One kill and what follows: the rows, what went wrong, and whether processes lived on until the next command."""
    wrong, moment = [], random.Random(number).uniform(0.5, undisturbed_seconds)
    with Place(folder / f"{number}-{moment}") as place:
        results = place.folder / "results"
        driver = place.start(command(results))
        time.sleep(moment)
        driver.kill()
        driver.communicate()
        if any(run.finished_at for run in runs.read_runs(results)):  # too late: the command would begin another run
            return kill_driver(number, 0.8 * undisturbed_seconds, folder)
        before = rows(results)
        lingering = bool(place.processes())
        for _ in range(5):
            again = place.start(command(results))
            output, _ = again.communicate(timeout=600)
            if again.returncode == 0:
                break
        else:
            wrong.append(f"never ended: {output[-500:]}")
        after = rows(results)
        if len(after) != 12 or not (after["status"] == "ok").all() or not after["trial_id"].is_unique:
            wrong.append(f"{len(after)} rows: {after['status'].tolist()}")
        if len(before):
            kept = after.set_index("trial_id")["started_at"].reindex(before["trial_id"])
            if kept.tolist() != before["started_at"].tolist():
                wrong.append("an ok trial was run twice")
        if left := place.left():
            wrong.append(left_behind(left))
    return after, wrong, lingering


def drivers(kills: int, seed: int, folder: Path) -> Verdict:
    began = time.monotonic()
    with Place(folder / "whole") as place:
        place.start(command(place.folder / "results")).communicate()
        seconds = time.monotonic() - began
        undisturbed = rows(place.folder / "results")
    expected = rresnet.speedup(undisturbed, over="batch_size", reference=1)
    started = undisturbed.set_index("trial_id")["started_at"]
    failures = lingered = 0
    for number in range(seed, seed + kills):
        after, wrong, lingering = kill_driver(number, seconds, folder)
        # An interval heeds how long the repeats took, and a kill takes time: else the answer is to be the same.
        after["started_at"] = after["trial_id"].map(started)
        if not wrong and not rresnet.speedup(after, over="batch_size", reference=1).equals(expected):
            wrong.append("another answer than that of the undisturbed run")
        failures, lingered = failures + bool(wrong), lingered + lingering
        print(f"driver {number - seed + 1} of {kills}: {wrong or 'fine'}", flush=True)
    saw = f"{kills} times 12 ok rows, none lost, none run twice, the same answer, nothing left behind; "
    saw += f"{failures} went wrong; processes of {lingered} lived on until the next command; an undisturbed run takes "
    saw += f"{seconds:.0f} s"
    return Verdict(check="kills of the driver, then the same command", saw=saw, met=not failures)


def trials(kills: int, folder: Path) -> Verdict:
    with Place(folder / "trials") as place:
        results, file = place.folder / "results", place.folder / "process"
        repeats = -(-(2 * kills + 4) // 4)
        line = command(results, "--repeats", str(repeats), seconds=1.0)
        run = place.start(line, STUB_PROCESS_FILE=str(file))
        killed, since, waits, moment = 0, 0.0, list[float](), random.Random(0)
        while killed < kills and run.poll() is None:
            if not file.exists():
                time.sleep(0.02)
                continue
            if killed:
                waits.append(time.monotonic() - since)
            process = int(file.read_text() or 0)
            time.sleep(moment.uniform(0, 1.2))  # also into the next trial, or between two
            process = int(file.read_text() or process)
            file.unlink()
            os.kill(process, signal.SIGKILL)
            since = time.monotonic()
            killed += 1
        run.communicate(timeout=600)
        found, left = rows(results), place.left()
    dead, longest = int((found["status"] == "killed").sum()), max(waits, default=0.0)
    saw = f"{killed} kills: {len(found)} rows of {4 * repeats} planned, {dead} killed, the rest ok; the next trial "
    saw += f"started within {longest:.1f} s; exit code {run.returncode}; {left_behind(left)}"
    fine = killed == kills and len(found) == 4 * repeats and set(found["status"]) <= {"ok", "killed"} and not left
    fine = fine and kills - 2 <= dead <= kills and longest < 10 and run.returncode == 1
    return Verdict(check="kills of trial processes", saw=saw, met=fine)


def exits(folder: Path) -> Verdict:
    """Every way a command ends but kill -9: refused, Ctrl-C, SIGTERM, complete; each leaves nothing."""
    with Place(folder / "exits") as place:
        results = place.folder / "results"
        line, seen, left, before = command(results, "--repeats", "500"), list[int](), list[str](), 0
        for end in (signal.SIGINT, signal.SIGTERM):
            run = place.start(line)
            while len(rows(results)) == before and run.poll() is None:
                time.sleep(0.1)
            if not before:
                second = place.start(line)  # finds the run held, once its Ray is up
                second.communicate(timeout=300)
                seen.append(second.returncode)
            run.send_signal(end)
            run.communicate(timeout=300)
            seen.append(run.returncode)
            left += place.left()
            before = len(rows(results))
        whole = place.start(command(results, "--name", "whole"))
        whole.communicate(timeout=300)
        left += place.left()
        found = rows(results)
    seen.append(whole.returncode)
    saw = f"exit codes {', '.join(map(str, seen))}; {len(found)} rows, {(found['status'] == 'ok').sum()} ok; "
    unique = not found.duplicated(["run_id", "trial_id"]).any()
    fine = seen == [2, 130, 143, 0] and unique and (found["status"] == "ok").all() and not left
    return Verdict(check="refused, Ctrl-C, SIGTERM, complete", saw=saw + left_behind(left), met=fine)


def disk(folder: Path) -> Verdict:
    small, check = folder / "small", "full disk"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", str(small)]).returncode:
        return Verdict(check=check, saw="not tried: no right to mount a small file system", met=True)
    try:
        with Place(folder / "disk") as place:
            first = place.start(command(small))
            while rows(small).empty and first.poll() is None:
                time.sleep(0.1)
            fill(small / "filler")
            told, _ = first.communicate(timeout=300)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                before = rows(small)
            refused = place.start(command(small))
            refusal, _ = refused.communicate(timeout=300)
            (small / "filler").unlink()
            again = place.start(command(small))
            again.communicate(timeout=300)
            after = rows(small)
            left = [*place.left(), *map(str, small.rglob(".*"))]
    finally:
        subprocess.run(["umount", str(small)])
    message, early = (
        next((line.strip().replace(str(small), "RESULTS") for line in text.splitlines() if "make space" in line), "")
        for text in (told, refusal)
    )
    saw = f"filled up after {len(before)} rows, exit code {first.returncode}: {message}; given again, exit code "
    saw += f"{refused.returncode}: {early}; with space again {len(after)} rows, exit code {again.returncode}; "
    codes = first.returncode == refused.returncode == 2 and again.returncode == 0
    fine = codes and bool(message and early) and 0 < len(before) < 12 and len(after) == 12 and not left
    return Verdict(check=check, saw=saw + left_behind(left), met=fine)


def fill(file: Path) -> None:
    """Leave no byte of space beside `file`."""
    with contextlib.suppress(OSError), file.open("wb", buffering=0) as filler:
        while filler.write(b"\0" * 4096):
            pass


def write_many(results: Path, number: int, count: int) -> None:
    name = f"writer{number}"
    run = runs.Run(run_id=name, experiment="chaos", name=name, plan_id=name, planned=count, started_at=f"2026-{number}")
    with store.Writer(results, run) as writer:
        for repeat in range(count):
            planned = Trial(cell=cell(), repeat=repeat, process=0)
            record = Record(measurement=Measurement(status="ok", images_per_second=1.0))
            made = sweep.rows_of(run, planned, record, attempt=1)
            writer.write(f"{name}-{repeat}", made)
    writer.finish("2026")


def writers(folder: Path) -> Verdict:
    results, polls, most = folder / "writers", 0, 0
    with ProcessPoolExecutor(8) as pool:
        jobs = [pool.submit(write_many, results, number, 200) for number in range(8)]
        while not all(job.done() for job in jobs):
            if (results / "trials").is_dir():
                seen = len(rresnet.read(results).trials)
                assert seen >= most, f"{most} rows were there, then {seen}"
                polls, most = polls + 1, seen
        for job in jobs:
            job.result()
    found = rresnet.read(results).trials
    unique = len(found.drop_duplicates(["run_id", "trial_id"]))
    left = [str(path) for path in results.rglob(".*")]
    saw = f"{len(found)} rows, {unique} unique; {polls} polls, none failed or lost a row; {left_behind(left)}"
    return Verdict(check="8 writers at once x 200 rows", saw=saw, met=len(found) == unique == 1600 and not left)


def main() -> int:
    options = arguments(__doc__, drivers=50, trials=30, seed=0, checks="writers disk exits deaths trials drivers")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checks: dict[str, Callable[[], list[Verdict]]] = {
            "writers": lambda: [writers(folder)],
            "disk": lambda: [disk(folder)],
            "exits": lambda: [exits(folder)],
            "deaths": lambda: deaths(folder),
            "trials": lambda: [trials(options.trials, folder)],
            "drivers": lambda: [drivers(options.drivers, options.seed, folder)],
        }
        return show([verdict for name in options.checks.split() for verdict in checks[name]()])


if __name__ == "__main__":
    sys.exit(main())
