"""Every way a trial can die: is each one row that says so, and is the next trial's process a clean one?

    python benchmarks/deaths.py       (2 minutes on two cores)

One run of `fate_run.py` holds all deaths but one; Ray's memory monitor, which acts for the whole machine, has a run
of its own. The kernel's out-of-memory killer is provoked by a limit on a control group, if the user may set one.
"""

import io
import json
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
from fate_run import FIRST_SIZE, Fate, can_limit_a_control_group
from huggingface import write_parquet
from PIL import Image
from place import Place, Verdict, rows, show

RUN = [sys.executable, str(Path(__file__).parent / "fate_run.py")]
SEED = 100  # of an order in which both cells that run out of memory in Python first do so beside a hot one
LIMIT_SECONDS = 40  # of a trial; on a busy machine it takes half of that to be ready
ENDED_WITHIN = 5.0  # seconds after its limit, for a hang
NEXT_WITHIN = 10.0  # seconds from a death to the start of the next trial
LIMIT_OF_ALL_SECONDS = 3600.0  # of a run: each death costs a fresh process, a minute on a machine that is busy
SPARE_BYTES = 3 * 2**30  # of memory that the machine may still give when Ray's monitor is to act

# What each row must say: status, class, and a piece of the message.
EXPECTED = {
    Fate.FINE: ("ok", None, None),
    Fate.ALSO_FINE: ("ok", None, None),
    Fate.RAISES: ("error", "ValueError", "the loop broke"),
    Fate.NAN_LOSS: ("error", "NonFiniteLossError", "the loss became nan"),
    Fate.EXITS: ("error", "SystemExit", "3"),
    Fate.CUDA_OUT_OF_MEMORY: ("out_of_memory", "OutOfMemoryError", "CUDA out of memory"),
    Fate.OUT_OF_MEMORY: ("out_of_memory", "RuntimeError", "can't allocate memory"),
    Fate.OUT_OF_MEMORY_KILLED: ("out_of_memory", "OutOfMemoryError", "the kernel ended a process of the trial"),
    Fate.KILLED_WHILE_BUILDING: ("killed", "ActorDiedError", "has died"),
    Fate.KILLED_IN_WARM_UP: ("killed", "ActorDiedError", "has died"),
    Fate.KILLED_WHILE_MEASURING: ("killed", "ActorDiedError", "has died"),
    Fate.KILLED_IN_EVALUATION: ("killed", "ActorDiedError", "has died"),
    Fate.KILLED_WHILE_REPORTING: ("killed", "ActorDiedError", "has died"),
    Fate.SEGFAULT: ("killed", "ActorDiedError", "has died"),
    Fate.HANGS_DEAF_TO_SIGTERM: ("timeout", "TimeoutError", f"still running after {LIMIT_SECONDS} s"),
    Fate.HANGS_WITH_THE_GIL: ("timeout", "TimeoutError", f"still running after {LIMIT_SECONDS} s"),
    Fate.EATS_THE_MACHINE: ("out_of_memory", "OutOfMemoryError", "low on memory"),
}


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try at a trial, as its process and our watch saw it."""

    fate: Fate
    process: int
    called: float
    begun: float  # once torch was imported
    fresh: bool  # the process had run nothing before
    gone: float | None  # when the process was no more


def run_fates(place: Place, images: Path, fates: str, **environment: str) -> tuple[pd.DataFrame, list[Attempt], int]:
    """Run the fates; their rows by fate, the attempts in order, the exit code."""
    log, results = place.folder / "log", place.folder / "results"
    log.write_text("")
    flags = [
        "--model",
        "resnet18",
        "--batch-size",
        "8",
        "--recipe",
        "tuned",
        "--seconds",
        "0.2",
        "--repeats",
        "1",
        "--seed",
        str(SEED),
    ]
    where = ["--dataset", str(images), "--timeout-seconds", str(LIMIT_SECONDS), "--results-dir", str(results)]
    run = place.start([*RUN, *flags, *where], FATE_LOG=str(log), FATES=fates, **environment)
    gone: dict[int, float] = {}
    watch = threading.Thread(target=_watch, args=(run.pid, log, gone))
    watch.start()
    told, _ = run.communicate(timeout=LIMIT_OF_ALL_SECONDS)
    watch.join()
    found = rows(results)
    assert len(found), told
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    attempts = [
        Attempt(
            fate=Fate(line["fate"]),
            process=line["process"],
            called=line["called"],
            begun=line["begun"],
            fresh=line["process"] not in [other["process"] for other in lines[:number]],
            gone=gone.get(line["process"]),
        )
        for number, line in enumerate(lines)
    ]
    return found.assign(fate=found["batch_size"] - FIRST_SIZE).set_index("fate"), attempts, run.returncode


def _watch(command: int, log: Path, gone: dict[int, float]) -> None:
    """Note when the processes named in the log are gone, until the command has ended."""
    while psutil.pid_exists(command) and psutil.Process(command).status() != psutil.STATUS_ZOMBIE:
        for line in log.read_text().splitlines():
            process = json.loads(line)["process"]
            if process not in gone and not psutil.pid_exists(process):
                gone[process] = time.time()
        time.sleep(0.05)


def judge(fate: Fate, of_fate: pd.DataFrame, attempts: list[Attempt]) -> Verdict:
    """What became of the trial of `fate`."""
    status, kind, message = EXPECTED[fate]
    tries = [one for one in attempts if one.fate == fate]
    last = tries[-1]
    row: dict[str, Any] = of_fate.astype(object).where(of_fate.notna(), None).iloc[0].to_dict()
    fine = len(of_fate) == 1 and row["status"] == status and row["error_type"] == kind
    fine = fine and (message is None or message in row["error_message"])
    saw = f"{len(of_fate)} row: {row['status']}"
    if kind:
        saw += f", {row['error_type']}: {row['error_message'].splitlines()[0][:60]}"
        fine = fine and bool(row["output_tail"])
    if status == "out_of_memory":
        fine = fine and len(tries) == row["attempt"] == 2 and last.fresh
        saw += f"; {len(tries)} attempts, the last alone in a fresh process"
    if last.gone and fate not in (Fate.FINE, Fate.ALSO_FINE):
        lived = last.gone - last.begun
        saw += f"; process gone after {lived:.1f} s"
        fine = fine and (status != "timeout" or lived < LIMIT_SECONDS + ENDED_WITHIN)
        if following := next((one for one in attempts if one.called > last.called), None):
            waited = following.called - last.gone
            saw += f"; next trial {waited:.1f} s later, process {'fresh' if following.fresh else 'USED'}"
            fine = fine and following.fresh and waited < NEXT_WITHIN
    elif fate not in (Fate.FINE, Fate.ALSO_FINE):
        saw, fine = f"{saw}; its process lived on", False
    return Verdict(check=fate.name.lower().replace("_", " "), saw=saw, met=fine)


def deaths(folder: Path) -> list[Verdict]:
    """All of them."""
    images = folder / "images.parquet"
    pictures = [io.BytesIO() for _ in range(120)]
    for number, file in enumerate(pictures):
        Image.new("L", (32, 32), 2 * number).save(file, "PNG")
    listed = [(file.getvalue(), number % 2, "test" if number < 40 else "train") for number, file in enumerate(pictures)]
    write_parquet(images, listed, ["even", "odd"])
    told = []
    with Place(folder / "deaths") as place:
        chosen = [fate for fate in EXPECTED if fate not in _apart()]
        found, attempts, code = run_fates(place, images, " ".join(fate.name for fate in chosen))
        told += [judge(fate, found.loc[[fate]], attempts) for fate in map(Fate, found.index)]
        told.append(after("all of these", place, code))
    memory = psutil.virtual_memory()
    share = 1 - (memory.available - SPARE_BYTES) / memory.total
    with Place(folder / "monitor") as place:
        monitor = {"RAY_memory_usage_threshold": f"{share:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
        found, attempts, code = run_fates(place, images, "EATS_THE_MACHINE FINE", **monitor)
        told += [judge(fate, found.loc[[fate]], attempts) for fate in map(Fate, found.index)]
        told.append(after("Ray's memory monitor", place, code))
    return told


def _apart() -> set[Fate]:
    """Those that can't be part of the one run."""
    return {Fate.EATS_THE_MACHINE} | (set() if can_limit_a_control_group() else {Fate.OUT_OF_MEMORY_KILLED})


def after(what: str, place: Place, code: int) -> Verdict:
    """Whether the command told the failures by its exit code and left nothing behind."""
    left = place.left()
    saw = f"exit code {code}, left behind: {', '.join(left) or 'nothing'}"
    return Verdict(check=f"after {what}", saw=saw, met=code == 1 and not left)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        sys.exit(show(deaths(Path(place))))
