"""A run, and the rows of a trial of it, as a run's writer gets them."""

from samples import make_cell

from rresnet.cell import Trial
from rresnet.runner.sweep import rows_of
from rresnet.tables.measurement import Measurement, Record, Window
from rresnet.tables.runs import Run
from rresnet.tables.store import Writer


def make_run(**changes):
    values = {
        "run_id": "r1",
        "experiment": "compare",
        "name": "compare",
        "plan_id": "p",
        "planned": 2,
        "started_at": "2026-01-01T00:00:00+00:00",
    }
    return Run(**{**values, **changes})


def rows_of_trial(run, repeat, status="ok", **values):
    trial = Trial(cell=make_cell(), repeat=repeat, process=0)
    window = Window(window=0, kind="measured", started_seconds=0.0, seconds=0.5, steps=2, images=16)
    record = Record(measurement=Measurement(status=status, **values), windows=(window,))
    return trial.trial_id, rows_of(run, trial, record, attempt=1)


def write(results, *repeats, run=None):
    """Write a trial for each repeat; return the writer, which is closed."""
    run = run or make_run()
    with Writer(results, run) as writer:
        for repeat in repeats:
            writer.write(*rows_of_trial(run, repeat, images_per_second=100.0 + repeat, epoch_seconds=9.0))
            writer.flush()
    return writer
