"""How Ray Tune gets the planned trials: one when it has room for one, and at no more cost than it must have.

Tune's own way, a `Searcher` behind its generator, copies the experiment's specification, parses a command line and
asks Ray's control store for the trainable several times for each trial, and looks through all trials at each event.
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
    """A planned trial as Tune's, of a trainable that is already at hand."""

    def __init__(self, planned: Trial, trainable: type, **options: Any) -> None:
        super().__init__(stub=True, **options)  # a stub is not looked up
        self.planned, self._trainable = planned, trainable

    def get_trainable_cls(self) -> type:
        """The trainable."""
        return self._trainable

    def set_ray_actor(self, ray_actor: Any) -> None:
        """Note the trial process, without asking it for what Tune would tell of a trial that reports nothing."""
        self.temporary_state.ray_actor = ray_actor

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune keeps an experiment's state for a restore that we do from our own rows."""
        return {}


class Handout(SearchAlgorithm):  # type: ignore[misc]
    """The planned trials, one at a time. As a context manager it lets one Tuner start at a time."""

    def __init__(self, next_trial: Callable[[], Trial | None], config: Callable[[Trial], dict[str, Any]]) -> None:
        self._next, self._config, self._running = next_trial, config, False
        self._starting = contextlib.ExitStack()
        self.given: Trial | None = None  # the latest

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as a trial's."""
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
        """The next planned trial; None when there is none left."""
        self.given = self._next()
        return self.given

    def next_trial(self) -> TuneTrial | None:
        """The next planned trial as Tune's; None while one runs, and when there is none left."""
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
        """There is room for the next."""
        self._running = False


class AsGiven(FIFOScheduler):  # type: ignore[misc]
    """Trials run as they come, and all but the last are forgotten: Tune looks through all that it knows at each event.

    It starts those that wait by itself and wants one to be left in the end; what became of them stands in our own rows.
    """

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None in particular."""

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Forget those before it."""
        del tune_controller.get_trials()[:-1]
