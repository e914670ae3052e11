"""A run whose trials come to grief, each in its own way: real trial processes, a small network, chosen deaths.

    FATE_LOG=/tmp/log python benchmarks/fate_run.py --model resnet18 --recipe tuned --results-dir /tmp/fates

The batch size chooses the fate (`Fate`). Each trial notes in FATE_LOG what it is about to suffer, and in which process.
`deaths.py` runs it and judges what became of it.
"""

import ctypes
import json
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from enum import IntEnum, auto
from pathlib import Path
from typing import Any
from unittest import mock

from rresnet import cli, grid
from rresnet.cell import Cell, Device
from rresnet.config import How, Settings
from rresnet.hardware import Hardware

FIRST_SIZE = 8  # batch size of the first fate
ALLOWANCE_BYTES = 2**28  # what a trial under a limit may still take


class Fate(IntEnum):
    """What becomes of a trial."""

    FINE = 0
    ALSO_FINE = auto()
    RAISES = auto()
    NAN_LOSS = auto()
    EXITS = auto()
    CUDA_OUT_OF_MEMORY = auto()
    OUT_OF_MEMORY = auto()
    OUT_OF_MEMORY_KILLED = auto()  # by the kernel's own killer, in a control group
    KILLED_WHILE_BUILDING = auto()
    KILLED_IN_WARM_UP = auto()
    KILLED_WHILE_MEASURING = auto()
    KILLED_IN_EVALUATION = auto()
    KILLED_WHILE_REPORTING = auto()  # measured, and about to say so
    SEGFAULT = auto()
    HANGS_DEAF_TO_SIGTERM = auto()
    HANGS_WITH_THE_GIL = auto()
    EATS_THE_MACHINE = auto()  # until Ray's memory monitor ends it: only where it is asked for


def _die_soon(*ignored: object) -> None:
    """Kill -9 a moment from now, in the midst of whatever is done then."""
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _fail(error: BaseException) -> None:
    raise error


def _take_memory(blocks: float, pause_seconds: float = 0.0) -> None:
    """Take memory and use it, until it is refused or somebody ends us."""
    import torch

    taken = []
    while len(taken) < blocks:
        taken.append(torch.ones(2**24))  # 64 MiB
        time.sleep(pause_seconds)


def _exhaust_the_host() -> None:
    """Ask for more than the kernel is willing to give: here to this process, by a limit on its address space."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ALLOWANCE_BYTES, resource.RLIM_INFINITY))
    _take_memory(float("inf"))


def _exhaust_a_control_group() -> None:
    """Let the kernel's own killer end this process."""
    path = next(line.split(":")[2] for line in Path("/proc/self/cgroup").read_text().splitlines() if ":memory:" in line)
    group = Path(f"/sys/fs/cgroup/memory{path}/fate-{os.getpid()}")
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(ALLOWANCE_BYTES))
    (group / "cgroup.procs").write_text(str(os.getpid()))
    _take_memory(float("inf"))


def can_limit_a_control_group() -> bool:
    """Whether this user may make a memory control group, of the first version, here."""
    return os.access("/sys/fs/cgroup/memory", os.W_OK)


def _hang_deaf() -> None:
    # Python lets only the main thread set a handler, and a trial runs on another.
    ctypes.CDLL(None).signal(int(signal.SIGTERM), ctypes.c_void_p(int(signal.SIG_IGN)))
    time.sleep(3600)


def _strike(fate: Fate) -> None:
    """What happens between warm-up and the measured windows."""
    import torch

    strikes: dict[Fate, Callable[[], object]] = {
        Fate.RAISES: lambda: _fail(ValueError("the loop broke")),
        Fate.EXITS: lambda: sys.exit(3),
        Fate.CUDA_OUT_OF_MEMORY: lambda: _fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")),
        Fate.OUT_OF_MEMORY: _exhaust_the_host,
        Fate.OUT_OF_MEMORY_KILLED: _exhaust_a_control_group,
        Fate.EATS_THE_MACHINE: lambda: _take_memory(128, pause_seconds=0.02),
        Fate.KILLED_WHILE_MEASURING: _die_soon,
        Fate.SEGFAULT: lambda: ctypes.string_at(0),
        Fate.HANGS_DEAF_TO_SIGTERM: _hang_deaf,
        Fate.HANGS_WITH_THE_GIL: lambda: re.match("(a+)+$", "a" * 60 + "b"),  # ages, and no other Python thread runs
    }
    strikes.get(fate, lambda: None)()


def _poison(bench: Any, *ignored: object) -> None:
    for parameter in bench.network.parameters():
        parameter.data.fill_(float("nan"))


def _doomed(fate: Fate) -> AbstractContextManager[object]:
    """Let `fate` strike where it is meant to, in the trial that is run in the block."""
    from rresnet.runner import trial
    from rresnet.training import train

    def around(home: Any, name: str, before: Callable[..., object] = id, after: Callable[..., object] = id) -> Any:
        real = getattr(home, name)

        def wrapped(*given: Any, **named: Any) -> Any:
            before(*given[:1])
            found = real(*given, **named)
            after(*given[:1])
            return found

        return mock.patch.object(home, name, wrapped)

    def die_when_told(report: dict[str, Any]) -> None:
        if "outcome" in report:
            os.kill(os.getpid(), signal.SIGKILL)

    if fate == Fate.KILLED_WHILE_BUILDING:
        return around(trial, "_train", before=_die_soon)
    if fate == Fate.KILLED_IN_WARM_UP:
        return around(train, "_warm_up", before=_die_soon)
    if fate == Fate.KILLED_IN_EVALUATION:
        return around(train, "evaluate", before=_die_soon)
    if fate == Fate.KILLED_WHILE_REPORTING:
        return around(trial.tune, "report", before=die_when_told)
    if fate == Fate.NAN_LOSS:
        return around(train, "_warm_up", before=_poison)
    return around(train, "_warm_up", after=lambda bench: _strike(fate))


def trial(config: dict[str, Any], how: How, data: Any) -> None:
    """In place of `rresnet.runner.trial.run`, which it calls."""
    fate = Fate(config["trial"].cell.batch_size - FIRST_SIZE)
    called = time.time()
    from rresnet.runner import trial  # seconds, in a fresh process

    with Path(os.environ["FATE_LOG"]).open("a") as log:
        log.write(json.dumps({"fate": fate, "process": os.getpid(), "called": called, "begun": time.time()}) + "\n")
    with _doomed(fate):
        trial.run(config, how, data)


def cells(settings: Settings, devices: Sequence[Device], hardware: Hardware) -> list[Cell]:
    """A cell for each fate, in the settings' place."""
    (one, *_) = grid.cells(settings, devices, hardware)
    chosen = [Fate[name] for name in os.environ["FATES"].split()]
    return [
        replace(one, batch_size=FIRST_SIZE + fate, epochs=1 if fate == Fate.KILLED_IN_EVALUATION else None)
        for fate in chosen
    ]


if __name__ == "__main__":
    sys.exit(cli.main("fates", __doc__ or "", cells=cells, trainable=trial))
