"""Which machine takes which trials: whole repeats, so that the cells of a pair are measured on one machine."""

import itertools
import threading
from collections import deque
from collections.abc import Sequence

from rresnet.cell import Cell, Trial


class Agenda:
    """The trials that no machine has taken yet, repeat by repeat in their order. Safe to share between threads."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        # Whether any cell spans several machines: then one machine measures everything, and the others only help.
        self.wide = any(trial.cell.num_nodes > 1 for trial in trials)
        self._repeats = deque[list[Trial]]()
        self._lost: set[str] = set()  # trials that were running when their machine died
        self._lock = threading.Lock()
        self.put_back(trials)

    def take(self, process: int | None = None) -> list[Trial]:
        """Take the next repeat: empty if none is left, or if `process` is given and the plan has it in another."""
        with self._lock:
            if not self._repeats or process not in (None, self._repeats[0][0].process):
                return []
            return self._repeats.popleft()

    def cells_of(self, process: int) -> list[Cell]:
        """The cells of the trials that the plan has in `process` and that no machine has taken."""
        with self._lock:
            return [trial.cell for repeat in self._repeats if repeat[0].process == process for trial in repeat]

    def put_back(self, trials: Sequence[Trial]) -> None:
        """Put back what a lost machine has left of its repeats, for another machine to take."""
        repeats = itertools.groupby(trials, key=lambda trial: (trial.process, trial.repeat))
        with self._lock:
            self._repeats.extendleft(reversed([list(of_repeat) for _, of_repeat in repeats]))

    def lose(self, trial: Trial) -> bool:
        """Note that a machine died while it ran this trial; return whether it is the first one to do so."""
        with self._lock:
            first = trial.trial_id not in self._lost
            self._lost.add(trial.trial_id)
            return first

    def was_lost(self, trial: Trial) -> bool:
        """Whether a machine has died while it ran the trial."""
        with self._lock:
            return trial.trial_id in self._lost

    @property
    def left(self) -> int:
        """The number of trials that no machine has taken."""
        with self._lock:
            return sum(map(len, self._repeats))
