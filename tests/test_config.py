import copy
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import make_cell

from rresnet import grid
from rresnet.cell import CELL_COLUMNS, Trial, UsageError, stable_hash
from rresnet.config import How, Settings
from rresnet.experiments.blog import BlogSettings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": (0,)}, "--batch-size must be at least 1, got 0"),
        ({"batch_size": ()}, "--batch-size needs at least one value"),
        ({"batch_size": (32, 32)}, "--batch-size names 32 twice"),
        ({"recipe": ("blog", "blog")}, "--recipe names blog twice"),
        ({"num_workers": (-1,)}, "--num-workers must be at least 1, got -1"),
        ({"cpu_threads": 0}, "--cpu-threads must be at least 1, got 0"),
        ({"image_size": 0}, "--image-size must be at least 1, got 0"),
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"processes": 0}, "--processes must be at least 1, got 0"),
        ({"epochs": 0}, "--epochs must be at least 1, got 0"),
        ({"epochs": 10**20}, "--epochs must be at most 2147483647, got 100000000000000000000"),
        ({"machines": 2}, "--machines is for the machines of a Ray cluster: give --address too"),
        ({"accelerator_type": "A100"}, "--accelerator-type is for the machines of a Ray cluster"),
        ({"name": "n" * 101}, "--name takes only letters, digits and - _ . (at most 100 of them)"),
        ({"seconds": 0.0}, "--seconds must be a number of seconds above 0, got 0.0"),
        ({"seconds": float("nan")}, "--seconds must be a number of seconds above 0, got nan"),
        ({"timeout_seconds": -1.0}, "--timeout-seconds must be a number of seconds above 0, got -1.0"),
        ({"seconds": 30.0, "timeout_seconds": 30.0}, "--timeout-seconds 30 ends each trial before its --seconds 30"),
        ({"seed": -1}, "--seed must be between 0 and 2**63 - 1, got -1"),
        ({"name": "../evil"}, "--name takes only letters, digits and - _ ."),
        ({"name": ".hidden"}, "--name takes only letters, digits and - _ ."),
    ],
)
def test_wrong_settings_say_what_is_wrong(changes, message):
    with pytest.raises(UsageError) as raised:
        Settings(**changes)
    assert message in str(raised.value)


def test_defaults_follow_the_kind_of_trial():
    assert (Settings().repeats_planned, Settings(epochs=2).repeats_planned) == (12, 1)
    assert (Settings().processes_planned, Settings(epochs=2).processes_planned) == (3, 1)


def test_the_time_limit_follows_the_cell():
    assert How(seconds=1.0).limit_seconds(make_cell()) == 600.0
    assert How(seconds=900.0).limit_seconds(make_cell()) == 2700.0  # a limit of less would end what was asked for
    assert How(seconds=900.0).limit_seconds(make_cell(epochs=2)) == 7200.0
    assert How(seconds=1.0, timeout_seconds=5.0).limit_seconds(make_cell(epochs=2)) == 5.0
    assert How(seconds=1.0, timeout_seconds=5.0).process_limit_seconds(make_cell(num_workers=2)) == 125.0
    assert How(seconds=1.0, timeout_seconds=5.0).process_limit_seconds(make_cell()) == 5.0


def test_a_timeout_may_be_shorter_than_the_seconds_that_whole_epochs_do_not_take():
    assert Settings(epochs=1, seconds=30.0, timeout_seconds=5.0).timeout_seconds == 5.0


def test_hashes_are_known_and_the_same_in_another_process():
    # echo -n '{"a":1}' | sha256sum | cut -c1-16
    assert stable_hash({"a": 1}) == "015abd7f5cc57a2d"
    code = "import sys; sys.path.insert(0, sys.argv[1]); from samples import make_cell; print(make_cell().cell_id)"
    folder = str(__file__).rsplit("/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == make_cell().cell_id


def test_trial_id_follows_cell_and_repeat_but_not_process():
    cell = make_cell()
    first = Trial(cell=cell, repeat=0, process=0)
    assert first.trial_id == Trial(cell=cell, repeat=0, process=2).trial_id
    assert first.trial_id != Trial(cell=cell, repeat=1, process=0).trial_id
    assert first.trial_id != Trial(cell=make_cell(batch_size=16), repeat=0, process=0).trial_id


@given(st.integers(1, 10**6), st.integers(0, 1000), st.integers(0, 10), st.sampled_from(["blog", "tuned"]))
def test_trials_survive_the_way_through_ray(batch_size, repeat, process, recipe):
    trial = Trial(cell=make_cell(batch_size=batch_size, recipe=recipe), repeat=repeat, process=process)
    again = pickle.loads(pickle.dumps(copy.deepcopy(trial)))
    assert (again, again.trial_id) == (trial, trial.trial_id)


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        (Settings(), "44136fa355b3678a"),
        (Settings(precision=("bf16", "fp32"), execution=("eager",)), "ae6351d6ab736404"),
        (
            Settings(profile=True, wait_seconds=3.0, address="auto"),
            "44136fa355b3678a",
        ),  # where it goes and how it is told
        (BlogSettings(full=True), "b8b2e10ff51e01cd"),
    ],
)
def test_requests_keep_their_hashes_so_that_unfinished_runs_go_on(settings, known):
    assert settings.request_id == known


def test_a_request_in_another_order_is_the_same():
    one = Settings(batch_size=(64, 8), recipe=("tuned", "blog"), precision=("fp32", "bf16"))
    other = Settings(batch_size=(8, 64), precision=("bf16", "fp32"))
    assert one.request_id == other.request_id != Settings(batch_size=(8, 32), precision=("bf16", "fp32")).request_id


def test_a_flag_at_its_default_is_no_part_of_a_request_so_that_a_later_one_changes_none():
    assert Settings().request_id == Settings(seconds=1.0).request_id != Settings(seconds=2.0).request_id


def test_the_columns_of_a_cell_stand_where_they_stood():
    stood = (
        *("device", "recipe", "precision", "input", "execution", "channels_last", "fused_optimizer", "pointwise"),
        "small_maps",
        "cudnn_benchmark",
        *("model", "dataset", "image_size", "batch_size", "num_workers", "num_nodes", "cpu_threads"),
        *("seed", "epochs", "copy"),
    )
    assert tuple(column for column in CELL_COLUMNS if column in stood) == stood  # a new axis stands between them


def test_what_a_subclass_says_anew_keeps_its_group_and_check():
    with pytest.raises(UsageError, match="--seconds must be a number of seconds above 0, got -1"):
        BlogSettings(seconds=-1.0)
    assert BlogSettings.flags()["seconds"] == Settings.flags()["seconds"]


def test_a_recipe_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(
        UsageError, match=r"--recipe tunde is not a recipe: did you mean tuned\? Recipes are blog, tuned"
    ):
        grid.recipe("tunde")


def test_global_batch_counts_all_workers():
    assert make_cell(batch_size=32, num_workers=4).global_batch_size == 128


def test_a_cell_refuses_what_can_not_be():
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        make_cell(batch_size=0)
