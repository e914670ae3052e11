"""What is told before the first trial, and after the last."""

import dataclasses
import io
from types import SimpleNamespace

import pandas as pd
import pytest
from rich.console import Console
from samples import A100, LAPTOP

from rresnet import grid
from rresnet.cell import UsageError
from rresnet.config import Settings
from rresnet.experiments import experiment, planning
from rresnet.runner import machines

SHRUNK = "The images' short side, {} pixels in the median, is resized to {}"
ADVICE = (
    "Training on larger images is different work with a different answer: give the --image-size that you will train at"
)


@pytest.mark.parametrize(
    ("done", "told"), [(0, []), (5, ["Continuing run r: 5 trials are done (--fresh starts anew)"])]
)
@pytest.mark.parametrize(
    ("size", "short_side", "shrunk"),
    [(32, None, []), (32, 32, []), (32, 33, [f"{SHRUNK.format(33, 32)}. {ADVICE}"]), (48, 49, [SHRUNK.format(49, 48)])],
)
def test_the_opening_says_what_is_trained_on_what(done, told, size, short_side, shrunk):
    settings = Settings(model="resnet18", dataset="photos", image_size=size, batch_size=(8,), repeats=4, processes=2)
    planned = planning.plan(settings, grid.cells, LAPTOP)
    images = SimpleNamespace(
        train=SimpleNamespace(labels=range(1234)),
        test=SimpleNamespace(labels=range(56)),
        classes=("a", "b", "c"),
        short_side=short_side,
    )
    conditions = planning.conditions(settings, [LAPTOP, A100], images)
    opening = planning.opening(SimpleNamespace(run_id="r"), settings, planned, set(range(done)), LAPTOP)
    (one,) = planning.machine_lines([dataclasses.replace(LAPTOP, cpu_count=1)])
    assert one == "laptop: A CPU, 1 CPU, no GPU"
    assert conditions[:2] == ["laptop: A CPU, 8 CPUs, no GPU", "a100: B CPU, 16 CPUs, 1 x NVIDIA A100"]
    assert conditions[4:] == [
        f"resnet18 on 1,234 training and 56 test images of photos, {size} x {size}, 3 classes",
        *shrunk,
    ]
    assert opening == [
        "cpu tuned is input resident, channels last, fused optimizer, pointwise linear, small maps linear, kernels "
        "fused",
        "8 trials: 2 settings x 4 repeats, 2 processes",
        *told,
    ]


@pytest.mark.parametrize(("there", "precision", "told"), [(False, "bf16", 1), (False, "fp32", 0), (True, "bf16", 0)])
def test_the_opening_says_that_bfloat16_is_emulated(there, precision, told):
    machine = dataclasses.replace(LAPTOP, cpu_bf16=there)
    plan = planning.plan(Settings(precision=(precision,)), grid.cells, machine)
    line = "This processor has no bfloat16 products: bf16 is emulated, and slower than fp32"
    assert planning._lacking_lines(plan, machine) == [line] * told


@pytest.mark.parametrize(("model", "told"), [("resnet50", 1), ("mynets:small", 0)])
def test_the_opening_says_what_fused_kernels_would_take(model, told):
    bare = dataclasses.replace(LAPTOP, gcc=False)
    cells = grid.cells(Settings(model=model), ("cpu",), bare)
    plan = [(trial, None) for trial in grid.plan(cells, repeats=1, processes=1, seed=0)]
    line = "cpu tuned has PyTorch's kernels: fused kernels need GCC (g++) and Linux on laptop"
    assert planning._lacking_lines(plan, bare) == [line] * told
    assert planning._lacking_lines(plan, LAPTOP) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"batch_size": (64, 1235)},
            "1235 images per step and worker are more than the 1234 training images of photos: lower --batch-size, or",
        ),
        (
            {"batch_size": (618,), "num_workers": (1, 2)},
            "618 images per step and worker are more than the 617 training images of photos that each of 2 "
            "workers has: lower --batch-size or --num-workers, or",
        ),
    ],
)
def test_a_batch_larger_than_a_workers_share_is_refused(flags, message):
    images = SimpleNamespace(train=SimpleNamespace(labels=range(1234)))
    settings = Settings(dataset="photos", cpu_threads=1, **flags)
    with pytest.raises(UsageError, match=message):
        planning.check_batches(planning.plan(settings, grid.cells, LAPTOP), images)
    fine = Settings(dataset="photos", cpu_threads=1, **{**flags, "batch_size": (617,)})
    planning.check_batches(planning.plan(fine, grid.cells, LAPTOP), images)


def test_what_can_not_run_anyway_is_not_judged_by_its_batch():
    images = SimpleNamespace(train=SimpleNamespace(labels=range(1000)))
    settings = Settings(batch_size=(64,), num_workers=(1, 64), cpu_threads=1)
    planned = planning.plan(settings, grid.cells, LAPTOP)
    assert {trial.cell.num_workers for trial, reason in planned if reason} == {64}
    planning.check_batches(planned, images)  # 15 images for each of 64 workers


RETRY = " The same command with --retry failed tries the others again."


@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        (["ok"], "Run complete: its one trial is ok."),
        (["ok", "ok"], "Run complete: all 2 trials are ok."),
        (["ok", "error"], f"Run complete: 1 of 2 trials are ok.{RETRY}"),
        (["ok", "infeasible"], "Run complete: 1 of 2 trials are ok. 1 can't run here; their rows say why."),
        (
            ["ok", "infeasible", "infeasible", "killed"],
            f"Run complete: 1 of 4 trials are ok. 2 can't run here; their rows say why.{RETRY}",
        ),
    ],
)
def test_a_retry_is_advised_where_it_may_help(statuses, told):
    assert experiment._completion(pd.DataFrame({"status": statuses})) == told


@pytest.mark.parametrize(
    ("cores", "threads", "together"),
    [
        (LAPTOP.cpu_cores, None, True),
        (LAPTOP.cpu_cores // 2, None, False),  # other cells: fewer threads
        (LAPTOP.cpu_cores // 2, 1, True),
        (LAPTOP.cpu_cores // 2, 4, False),  # the same cells, but two of these workers find no place there
    ],
)
def test_machines_measure_together_what_each_of_them_can(cores, threads, together):
    settings = Settings(device=("cpu",), num_workers=(1, 2), cpu_threads=threads)
    other = dataclasses.replace(LAPTOP, cpu_cores=cores, cpu_count=cores)
    assert planning.alike(settings, grid.cells, LAPTOP, other) == together


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"compiler": False},
            ["far does not measure: with compiler False the flags mean other settings there than on a100"],
        ),
        (
            {"cpu_cores": 4, "gpu_capability": (7, 0)},
            [
                "far does not measure: with cpu cores 4, gpu capability (7, 0) the "
                "flags mean other settings there than on a100"
            ],
        ),
        ({"gcc": False}, ["far does not measure: with gcc False the flags mean other settings there than on a100"]),
        ({"cpu_model": "another"}, []),
    ],
)
def test_why_flags_mean_other_settings_on_a_machine_is_told(changes, told):
    found = []
    other = dataclasses.replace(A100, hostname="far", **changes)
    joined = tuple(machines.Machine(node_id=one.hostname, hardware=one, logs="") for one in (A100, other))
    together = experiment._alike(joined, Settings(), grid.cells, found.append)
    assert (found, together) == (told, joined[: 1 if told else 2])


def test_machines_of_one_name_are_told():
    other = dataclasses.replace(LAPTOP, hostname="desktop")
    assert not any("called" in line for line in planning.machine_lines([LAPTOP, other]))
    assert any("2 of them are called laptop: " in line for line in planning.machine_lines([LAPTOP, other, LAPTOP]))


@pytest.mark.parametrize(("num_workers", "told"), [((1,), "1 min 36 s"), ((1, 2), "3 min 12 s")])
def test_a_predicted_duration_counts_the_start_of_processes_and_of_their_workers(num_workers, told, monkeypatch):
    """Two processes of two repeats: in each, 12 s (24 s with workers) to start, and of each cell 20 s and 16 s."""

    def predicted(trials, cells, seconds):
        return {cell.cell_id: (20.0, 16.0) for cell in cells}

    settings = Settings(
        device=("cpu",), recipe=("tuned",), batch_size=(8,), num_workers=num_workers, repeats=4, processes=2
    )
    planned = planning.plan(settings, grid.cells, LAPTOP)
    monkeypatch.setattr("rresnet.analysis.rates.trial_seconds", predicted)
    monkeypatch.setattr("rresnet.analysis.frames.read", lambda place: SimpleNamespace(trials=None))
    assert f"Predicted duration: {told} from start to end, from" in planning._prediction(
        [trial for trial, _ in planned], settings
    )


def test_a_dry_run_tells_recipes_apart_that_differ_in_what_is_no_flag(tmp_path, monkeypatch):
    monkeypatch.setitem(grid.RECIPES, "half", lambda device, hardware: grid.Axes(input="resident", small_maps="linear"))
    settings = Settings(device=("cpu",), recipe=("tuned", "half"), batch_size=(8,), results_dir=str(tmp_path))
    out = io.StringIO()
    planning.show(planning.plan(settings, grid.cells, LAPTOP), settings, Console(file=out, width=140), None, ())
    assert "cpu half is input resident, small maps linear\n" in out.getvalue()


def test_a_dry_run_counts_and_times_only_what_is_left(monkeypatch):
    settings = Settings(
        device=("cpu",), recipe=("blog", "tuned"), batch_size=(8,), kernels=("fused",), repeats=4, processes=2
    )
    monkeypatch.setattr("rresnet.analysis.rates.trial_seconds", lambda _, cells, seconds: dict.fromkeys(
        (cell.cell_id for cell in cells), (20.0, 16.0)))  # fmt: skip
    monkeypatch.setattr("rresnet.analysis.frames.read", lambda place: SimpleNamespace(trials=None))
    planned = planning.plan(settings, grid.cells, LAPTOP)  # the blog's layout has no fused kernels
    able = [trial.trial_id for trial, reason in planned if reason is None]

    def shown(done):
        out = io.StringIO()
        run = SimpleNamespace(run_id="r1") if done else None
        planning.show(planned, settings, Console(file=out, width=140), run, done)
        return out.getvalue()

    assert len(able) == 4
    assert "Would run 4 of 8 trials: 2 settings x 4 repeats, 2 processes\n" in shown(())
    assert "Predicted duration: 1 min 36 s" in shown(())
    left = shown(able[:3])
    assert "Would run 1 of 8 trials" in left
    assert "Predicted duration: 32 s" in left  # one process, and its first trial
    assert "3 of them are done: it would go on with run r1" in left
    assert "Predicted" not in shown(able)


def test_a_duration_is_not_predicted_from_other_work(monkeypatch):
    settings = Settings(device=("cpu",), recipe=("blog", "tuned"), batch_size=(8,), model="resnet18", image_size=48)
    planned = planning.plan(settings, grid.cells, LAPTOP)
    one = planned[0][0].cell.cell_id  # the other cell is not known
    monkeypatch.setattr("rresnet.analysis.rates.trial_seconds", lambda *args: {one: (20.0, 16.0)})
    monkeypatch.setattr("rresnet.analysis.frames.read", lambda place: SimpleNamespace(trials=None))
    said = planning._prediction([trial for trial, _ in planned], settings)
    assert said.startswith("Predicted duration: not known until")
    assert "resnet18 at 48 pixels" in said
