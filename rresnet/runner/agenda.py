"""Which machine takes which trials: whole repeats, so that the cells of a pair are measured on one machine."""

import itertools
import threading
from collections import deque
from collections.abc import Sequence

from rresnet.cell import Cell, Trial


class Agenda:
    """The trials that no machine has taken yet, repeat by repeat in their order. Safe to share between threads."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        # Whether any cell spans several machines: then one of them measures all, and the others only help.
        self.wide = any(trial.cell.num_nodes > 1 for trial in trials)
        self._repeats = deque[list[Trial]]()
        self._lost: set[str] = set()  # trials that a machine has taken along with it
        self._lock = threading.Lock()
        self.put_back(trials)

    def take(self, process: int | None = None) -> list[Trial]:
        """The next repeat, empty when there is none; given a process, only where the plan has it in that one."""
        with self._lock:
            if not self._repeats or process not in (None, self._repeats[0][0].process):
                return []
            return self._repeats.popleft()

    def cells_of(self, process: int) -> list[Cell]:
        """The cells of what no machine has taken of that process of the plan."""
        with self._lock:
            return [trial.cell for repeat in self._repeats if repeat[0].process == process for trial in repeat]

    def put_back(self, trials: Sequence[Trial]) -> None:
        """Let another machine take what a machine that is gone has left of its repeats."""
        repeats = itertools.groupby(trials, key=lambda trial: (trial.process, trial.repeat))
        with self._lock:
            self._repeats.extendleft(reversed([list(of_repeat) for _, of_repeat in repeats]))

    def lose(self, trial: Trial) -> bool:
        """Note that a machine died with this trial; whether it is the first one to do so."""
        with self._lock:
            first = trial.trial_id not in self._lost
            self._lost.add(trial.trial_id)
            return first

    def losses(self, trial: Trial) -> int:
        """How many machines have died with the trial, up to one that counts."""
        with self._lock:
            return int(trial.trial_id in self._lost)

    @property
    def left(self) -> int:
        """Trials that no machine has taken."""
        with self._lock:
            return sum(map(len, self._repeats))
