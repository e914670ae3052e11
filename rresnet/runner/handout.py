"""How Ray Tune gets the planned trials: one whenever it has room for one, at no more cost than necessary.

Tune's own way is a `Searcher` behind its generator. For each trial it copies the experiment's specification, parses a
command line and asks Ray's control store for the trainable several times; at each event it looks through all trials.
"""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from ray.tune import experiment, registry
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import SearchAlgorithm

from rresnet.cell import Trial

_STARTING = threading.Lock()  # Tune's registry of trainables is not made for several Tuners that start at once


class TuneTrial(experiment.Trial):  # type: ignore[misc]  # Ray leaves it untyped
    """A planned trial as a trial of Tune's, whose trainable is already at hand."""

    def __init__(self, planned: Trial, trainable: type, **options: Any) -> None:
        super().__init__(stub=True, **options)  # a stub's trainable is not looked up
        self.planned, self._trainable = planned, trainable

    def get_trainable_cls(self) -> type:
        """The trainable."""
        return self._trainable

    def set_ray_actor(self, ray_actor: Any) -> None:
        """Note the trial process, without asking it for the metrics that Tune has of a trial with no report yet."""
        self.temporary_state.ray_actor = ray_actor

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune keeps an experiment's state to restore it; we restore from our own rows."""
        return {}


class Handout(SearchAlgorithm):  # type: ignore[misc]
    """The planned trials, one at a time. As a context manager it lets one Tuner start at a time."""

    def __init__(self, next_trial: Callable[[], Trial | None], config: Callable[[Trial], dict[str, Any]]) -> None:
        self._next, self._config, self._running = next_trial, config, False
        self._starting = contextlib.ExitStack()
        self.given: Trial | None = None  # the latest trial handed out

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, as for a trial."""
        return {}

    def __enter__(self) -> "Handout":
        self._starting.enter_context(_STARTING)
        return self

    def __exit__(self, *reason: object) -> None:
        self._starting.close()

    def add_configurations(self, experiments: Any) -> None:
        """Take Tune's specification of what a trial is."""
        (one,) = experiments
        self._options = {
            "trainable_name": one.spec["run"],
            "storage": one.spec["storage"],
            "trial_dirname_creator": one.spec["trial_dirname_creator"],
        }
        self._trainable = registry.get_trainable_cls(one.spec["run"])

    def take(self) -> Trial | None:
        """Take the next planned trial; None when there is none left."""
        self.given = self._next()
        return self.given

    def next_trial(self) -> TuneTrial | None:
        """The next planned trial, as Tune's; None while one runs, or when there is none left."""
        self._starting.close()
        if self._running or self._finished:
            return None
        planned = self.take()
        if planned is None:
            self.set_finished()
            return None
        self._running = True
        return TuneTrial(planned, self._trainable, config=self._config(planned), **self._options)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Note that there is room for the next trial."""
        self._running = False


class AsGiven(FIFOScheduler):  # type: ignore[misc]
    """Run trials as they come and forget all but the last: Tune looks through all that it knows at each event.

    Tune starts waiting trials by itself, and needs one to be left at the end. What became of them is in our own rows.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """Choose none in particular."""

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Forget the trials before it."""
        del tune_controller.get_trials()[:-1]
