"""Everything that can die is killed: is anything lost, run twice, damaged or left behind?

    python benchmarks/chaos.py                          (about 40 minutes on two cores; root, for the full disk)
    python benchmarks/chaos.py --drivers 2 --trials 3   a short form

Drivers: kill -9 of the command at a random moment of a 12-trial run, then the same command until it ends. Trials:
kill -9 of the trial process, again and again in one run. Disk: a results folder on a file system of 44 KiB. Writers:
8 processes write 200 rows each to one folder while a reader polls.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import psutil
from common import arguments, cell, verdict

import rresnet
from rresnet import store, sweep
from rresnet.config import Trial
from rresnet.measurement import Measurement

RUN = [sys.executable, str(Path(__file__).parent / "stub_run.py")]
MARK = "RRESNET_CHAOS"  # in the environment of all that a command starts


def command(results: Path, *flags: str, seconds: float = 0.2) -> list[str]:
    planned = ["--repeats", "3", "--processes", "1", "--seconds", str(seconds)]
    return [*RUN, *planned, "--results-dir", str(results), *flags]


def start(line: list[str], mark: str, **environment: str) -> subprocess.Popen[str]:
    marked = {**os.environ, MARK: mark, **environment}
    return subprocess.Popen(line, env=marked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def left_behind(mark: str, limit: float = 15.0) -> list[str]:
    """Processes that a command started and that still live when `limit` seconds have passed."""
    end = time.monotonic() + limit
    while True:
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(" ".join(process.cmdline())[:80])
            except psutil.Error:
                continue
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.3)


def rows(results: Path) -> pd.DataFrame:
    return pd.read_parquet(results / "trials") if any((results / "trials").glob("*.parquet")) else pd.DataFrame()


def kill_driver(number: int, undisturbed_seconds: float, folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """One kill and what follows: the rows, and what went wrong."""
    results, mark, wrong = folder / str(number), f"driver{number}", []
    driver = start(command(results), mark)
    time.sleep(random.Random(number).uniform(0.5, undisturbed_seconds))
    driver.kill()
    driver.communicate()
    before = rows(results)
    if processes := left_behind(mark):
        wrong.append(f"left behind: {processes}")
    for _ in range(5):
        again = start(command(results), mark)
        output, _ = again.communicate(timeout=300)
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
    if processes := left_behind(mark):
        wrong.append(f"left behind: {processes}")
    return after, wrong


def drivers(kills: int, folder: Path) -> int:
    began = time.monotonic()
    whole = start(command(folder / "whole"), "whole")
    whole.communicate()
    seconds = time.monotonic() - began
    expected = rresnet.speedup(rows(folder / "whole"), over="batch_size", reference=1)
    failures = 0
    for number in range(kills):
        after, wrong = kill_driver(number, seconds, folder)
        if not wrong and not rresnet.speedup(after, over="batch_size", reference=1).equals(expected):
            wrong.append("another answer than that of the undisturbed run")
        failures += bool(wrong)
        print(f"driver {number + 1} of {kills}: {wrong or 'fine'}", flush=True)
    return verdict(f"{kills} kills of the driver (a run takes {seconds:.0f} s): {failures} went wrong", not failures)


def trials(kills: int, folder: Path) -> int:
    results, file = folder / "trials", folder / "process"
    flags = ("--repeats", str(-(-(2 * kills + 4) // 4)))
    run = start(command(results, *flags, seconds=1.0), "trials", STUB_PROCESS_FILE=str(file))
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
    found = rows(results)
    dead = int((found["status"] == "killed").sum())
    told = f"{killed} kills of trial processes: {len(found)} rows, {dead} killed, the rest ok; the next trial "
    told += f"started within {max(waits):.1f} s; exit code {run.returncode}; "
    told += f"left behind: {left_behind('trials') or 'nothing'}"
    fine = killed == kills and len(found) == int(flags[1]) * 4 and set(found["status"]) <= {"ok", "killed"}
    return verdict(told, fine and kills - 2 <= dead <= kills and max(waits) < 10 and run.returncode == 1)


def disk(folder: Path) -> int:
    small = folder / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=44k", "none", str(small)]).returncode:
        print("full disk: not tried (no right to mount a small file system)")
        return 0
    try:
        first = start(command(small), "disk")
        told, _ = first.communicate(timeout=300)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            before = rows(small)
        subprocess.run(["mount", "-o", "remount,size=10m", str(small)], check=True)
        again = start(command(small), "disk")
        again.communicate(timeout=300)
        after = rows(small)
    finally:
        subprocess.run(["umount", str(small)])
    message = next((line for line in told.splitlines() if "make space" in line), "no message")
    told = (
        f"full disk after {len(before)} rows, exit code {first.returncode}: {message.strip()}; then {len(after)} rows"
    )
    return verdict(told, first.returncode == 2 and len(before) < 12 and len(after) == 12 and again.returncode == 0)


def write_many(results: Path, number: int, count: int) -> None:
    name = f"writer{number}"
    run = store.Run(
        run_id=name, experiment="chaos", name=name, plan_id=name, planned=count, started_at=f"2026-{number}"
    )
    with store.Writer(results, run) as writer:
        for repeat in range(count):
            planned = Trial(cell=cell(), repeat=repeat, process=0)
            measured = asdict(Measurement(status="ok", images_per_second=1.0))
            made = sweep.rows_of(run, planned, measured, attempt=1, known={}, record={})
            writer.write(f"{name}-{repeat}", made)
    writer.finish("2026")


def writers(folder: Path) -> int:
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
    return verdict(f"8 writers: {len(found)} rows, {unique} unique, {polls} polls", len(found) == unique == 1600)


def main() -> int:
    options = arguments(__doc__, drivers=50, trials=30)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        missed = writers(folder) | disk(folder)
        return missed | trials(options.trials, folder) | drivers(options.drivers, folder)


if __name__ == "__main__":
    sys.exit(main())
