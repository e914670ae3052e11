"""What the checks of the runner's robustness share: where commands run, what they leave behind, and the verdicts."""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import psutil
from rich.console import Console
from rich.table import Table

SHARED_MEMORY = Path("/dev/shm")
_MARK = "RRESNET_PLACE"  # in the environment of all that a command starts, however it is detached from its parent


@dataclass(frozen=True)
class Place:
    """Results and temporary files of the commands of one check, apart from those of anything else on the machine.

    The temporary folder is not in `folder`: its path must be short, for it holds Ray's sockets.
    """

    folder: Path
    temporary: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="")))
    _shared_before: frozenset[Path] = field(default_factory=lambda: frozenset(SHARED_MEMORY.glob("*")))

    def __enter__(self) -> "Place":
        self.folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *reason: object) -> None:
        for process in self._ours():  # none, unless a check has failed
            with contextlib.suppress(psutil.Error):
                process.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def start(self, line: Sequence[str], **environment: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, its output in a pipe."""
        marked = {**os.environ, _MARK: str(self.temporary), "TMPDIR": str(self.temporary), **environment}
        return subprocess.Popen(
            line, env=marked, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def processes(self, limit: float = 15.0) -> list[str]:
        """Processes of the commands that still live when `limit` seconds have passed."""
        return _remaining(self._processes, limit)

    def left(self, limit: float = 15.0) -> list[str]:
        """Whatever is left `limit` seconds after a command has ended: processes, temporary files, shared memory."""
        return _remaining(lambda: [*self._processes(), *self._files()], limit)

    def _processes(self) -> list[str]:
        found = []
        for process in self._ours():
            with contextlib.suppress(psutil.Error):
                found.append(f"process {' '.join(process.cmdline())[:80]}")
        return found

    def _ours(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(_MARK) == str(self.temporary) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _files(self) -> list[str]:
        """Temporary files, files half written beside results, and shared memory that no living process is named in."""
        shared = [path for path in set(SHARED_MEMORY.glob("*")) - self._shared_before if not _of_the_living(path)]
        return [f"file {path}" for path in (*self.temporary.iterdir(), *self.folder.rglob(".*"), *shared)]


def _of_the_living(path: Path) -> bool:
    """Whether a name like torch_123_456_0 holds the id of a living process: another program's."""
    return any(part.isdigit() and psutil.pid_exists(int(part)) for part in path.name.split("_"))


def _remaining(find: Callable[[], list[str]], limit: float) -> list[str]:
    end = time.monotonic() + limit
    while (found := find()) and time.monotonic() < end:
        time.sleep(0.3)
    return found


def rows(results: Path) -> pd.DataFrame:
    """The trials table, read with nothing of ours."""
    return pd.read_parquet(results / "trials") if any((results / "trials").glob("*.parquet")) else pd.DataFrame()


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one check saw."""

    check: str
    saw: str
    met: bool

    def __post_init__(self) -> None:
        print(f"{'met' if self.met else 'MISSED'}: {self.check}: {self.saw}", flush=True)


def show(verdicts: Sequence[Verdict]) -> int:
    """Print all verdicts as one table; the exit code."""
    table = Table("verdict", "check", "seen", show_lines=True)
    for one in verdicts:
        table.add_row("met" if one.met else "MISSED", one.check, one.saw)
    Console(width=160, markup=False).print(table)
    return 0 if all(one.met for one in verdicts) else 1
