"""One worker group trains all cells of several workers, in turns with those of one; a trial that fails ends it."""

import faulty
import pytest
from samples import make_cell

from rresnet import grid

pytestmark = pytest.mark.integration
LIMIT = 600.0  # seconds: none of these hangs, and beside other tests three workers are slow
CPUS = 3  # as Ray counts them: the workers share the cores that there are


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Rows of one, two and three workers, of two whose trial process is killed, and of two of which the second fails;
    size and state of all placements; the classes of all actors.
    """
    from ray._private.state import actors
    from ray.util.placement_group import placement_group_table

    common = {"model": "faulty:slow_to_build", "input": "resident", "cpu_threads": 1}
    fine = [make_cell(num_workers=workers, **common) for workers in (1, 2, 3)]
    broken = make_cell(**{**common, "model": "faulty:for_the_first_worker"}, num_workers=2)
    killed = make_cell(batch_size=faulty.LEAKS, num_workers=2, **common)
    planned = grid.plan(fine, repeats=2, processes=1, seed=1)
    planned += [grid.plan([cell], repeats=1, processes=1, seed=1)[0] for cell in (killed, broken)]
    with faulty.swept(planned, tmp_path_factory.mktemp("results"), cpus=CPUS, limit=LIMIT) as rows:
        placed = [(len(group["bundles"]), group["state"]) for group in placement_group_table().values()]
        yield planned, rows.sort_values("started_at"), placed, {one["ActorClassName"] for one in actors().values()}


def test_each_trial_is_a_row_with_what_its_workers_measured(trained):
    _, rows, *_ = trained
    ok = rows[rows["status"] == "ok"]
    assert sorted(zip(ok["num_workers"], ok["repeat"], strict=True)) == [(n, r) for n in (1, 2, 3) for r in range(2)]
    assert (ok["images_per_second"] > 0).all()
    assert (ok["observed_threads"] == 1).all()
    several = ok["num_workers"] > 1
    first = ok["repeat"] == 0
    assert (ok.loc[several & first, "communication_seconds"] >= 0).all()
    assert ok.loc[~(several & first), "communication_seconds"].isna().all()


def test_they_take_turns_as_planned(trained):
    planned, rows, *_ = trained
    told = rows["started_at"].notna()  # all but the one that was killed
    assert list(rows.loc[told, "trial_id"]) == [t.trial_id for t in planned if t.cell.batch_size != faulty.LEAKS]


def test_what_was_built_stays_hot_in_the_workers_too(trained):
    _, rows, *_ = trained
    fine = rows[rows["status"] == "ok"].set_index(["repeat", "num_workers"])["startup_seconds"]
    for repeat, hot in ((0, False), (1, True)):
        assert all((fine[repeat, workers] < 0.5) == hot for workers in (1, 2, 3))


def test_after_a_kill_the_next_process_has_a_group_and_what_a_worker_raises_is_its_trials_error(trained):
    _, rows, placed, _ = trained
    (failed,) = rows[rows["status"] == "error"].to_dict("records")
    assert (failed["status"], failed["error_type"]) == ("error", "ValueError")
    assert failed["error_message"] == "not for this worker"
    groups = sorted(size for size, _ in placed if size > 1)  # the others are those of the trial processes
    assert groups == [2, 3]  # for eight trials; nothing that the second process may get takes three workers


def test_what_the_workers_held_is_given_back_also_by_a_process_that_was_killed(trained):
    _, rows, placed, _ = trained
    assert list(rows["status"]).count("killed") == 1
    assert {state for _, state in placed} == {"REMOVED"}


def test_ray_starts_no_actor_that_the_group_makes_no_use_of(trained):
    *_, classes = trained
    assert {"RayTrainWorker", "TrainController", "Exchange"} <= classes
    assert not {"DatasetManager", "_AutoscalingCoordinatorActor"} & classes


def test_a_ray_that_has_other_names_for_them_starts_its_workers_all_the_same(monkeypatch):
    from ray.train.torch import TorchTrainer

    from rresnet.runner.group import GroupTrainer

    class DatasetsCallback:
        pass

    class Another:
        pass

    ran, policy = [], Another()
    monkeypatch.setattr(TorchTrainer, "_create_default_callbacks", lambda self: [DatasetsCallback(), policy])
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda self, **given: ran.append(given) or 7)
    trainer = object.__new__(GroupTrainer)
    assert trainer._create_default_callbacks() == [policy]
    for given in ({"scaling_policy": policy, "other": 1}, {"policy": policy}):
        assert trainer._initialize_and_run_controller(**given) == 7
        assert ran.pop() == given
    assert policy._send_resource_request() is None  # of the first alone, if it has such a thing
