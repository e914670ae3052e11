"""A head and two workers as hosts of their own: `ray up`, `ray submit`, `ray rsync-down`, a worker's end, `ray down`.

Printed with `pytest -s`: the seconds of each stage.
"""

import os
import time

import pandas as pd
import pytest
import yaml
from hosts import HOME, ROOT

from rresnet.analysis import diff

FILE = f"{HOME}/local.yaml"
QUICK = "--model resnet18 --batch-size 8 --precision fp32 --cpu-threads 1 --seconds 0.2"


@pytest.fixture(scope="module")
def cluster(network):
    """The hosts, with Ray up on them by clusters/local.yaml with their addresses, nothing installed anew."""
    head = network.add("head", cpus=0)
    cores = sorted(os.sched_getaffinity(0))
    workers = [network.add(f"worker-{n + 1}", cpus=1, core=cores[n % len(cores)]) for n in range(2)]
    config = yaml.safe_load((ROOT / "clusters/local.yaml").read_text())
    config["provider"].update(head_ip=head.address, worker_ips=[worker.address for worker in workers])
    config["auth"]["ssh_user"] = "root"
    installing = [line for line in config["setup_commands"] if "python3 -m venv" in line or "pip install" in line]
    assert len(installing) == 2  # needs the internet; everything else is done as it stands there
    there = f"ln -sfn {ROOT}/.venv ~/rresnet-env"
    config["setup_commands"] = [there if line in installing else line for line in config["setup_commands"]]
    network.laptop.file(FILE).write_text(yaml.safe_dump(config))
    network.laptop.run("ray get-auth-token --generate && chmod 600 ~/.ray/auth_token")
    began = time.monotonic()
    network.laptop.run(f"ray up -y --no-config-cache {FILE}")
    print(f"\nray up: {time.monotonic() - began:.0f} s")
    wait_until(lambda: "3 local.cluster.node" in head.run("RAY_AUTH_MODE=token ray status").stdout)
    print(f"head and two workers: {time.monotonic() - began:.0f} s")
    return network.laptop, head, workers


def wait_until(true, seconds=600.0):
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline
        time.sleep(1.0)
    return found


def submit(laptop, flags, results):
    began = time.monotonic()
    done = laptop.run(
        f"ray submit {FILE} experiments/compare.py --address auto {QUICK} {flags} --results-dir {results}",
        timeout=500, check=False,
    )  # fmt: skip
    print(f"ray submit {flags}: {time.monotonic() - began:.0f} s")
    return done


def fetched(laptop, results):
    """The trials table of a results folder on the head, brought to the laptop as docs/cluster.md says."""
    laptop.run(f"ray rsync-down {FILE} '~/{results}/' {HOME}/{results}/")
    return pd.read_parquet(laptop.file(f"{HOME}/{results}/trials"))


@pytest.fixture(scope="module")
def together(cluster):
    """The rows of a run on both workers."""
    laptop, _, _ = cluster
    done = submit(laptop, "--recipe blog tuned --repeats 4 --processes 4", "results")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Run complete: all 8 trials are ok." in done.stdout
    return fetched(laptop, "results")


def test_compare_measures_on_both_workers_and_its_rows_come_back(cluster, together):
    _, head, workers = cluster
    rows = together
    assert len(rows) == 8
    assert rows["status"].eq("ok").all()
    assert set(rows["hostname"]) == {worker.name for worker in workers}
    assert rows.groupby("repeat")["hostname"].nunique().eq(1).all()  # a pair never crosses machines
    assert rows["observed_threads"].eq(1).all()
    assert not head.processes("compare.py")


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="each of two machines needs a core of its own")
def test_two_machines_at_once_measure_what_one_does_alone(cluster, together):
    """Each has a core of its own; rows of both runs are compared as `rresnet diff` does, which knows their scatter."""
    laptop, _, workers = cluster
    done = submit(laptop, "--recipe blog tuned --repeats 4 --processes 4 --machines 1", "alone")
    assert done.returncode == 0, done.stdout + done.stderr
    alone = fetched(laptop, "alone")
    assert alone["hostname"].nunique() == 1
    assert together["hostname"].nunique() == len(workers)
    found = diff.compare(alone, together)
    for change in found.changes:
        print(
            f"{change.setting}, both at once over one alone: {change.ratio:.3f} ({change.low:.3f} - {change.high:.3f})"
        )
    assert {change.verdict for change in found.changes} == {"not distinguishable"}


def test_workers_on_two_machines_train_as_one_group(cluster):
    """Through Ray Train's worker group, whose gradients cross the network; in turns with one worker."""
    laptop, _, _ = cluster
    done = submit(laptop, "--recipe tuned --num-workers 1 2 --repeats 2 --processes 1", "across")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = fetched(laptop, "across").sort_values("started_at")
    assert list(rows["status"]) == ["ok"] * 4
    assert list(rows["repeat"]) == [0, 0, 1, 1]
    assert rows["hostname"].nunique() == 1  # the process that asks for the trials is on the first machine
    assert rows.loc[rows["repeat"] == 1, "startup_seconds"].lt(0.05).all()  # what was built in the first stays hot
    assert rows.loc[rows["num_workers"] == 1, "num_nodes"].eq(1).all()
    row = rows[rows["num_workers"] == 2].iloc[0]
    assert (row["num_nodes"], row["global_batch_size"]) == (2, 16)
    assert 0 < row["communication_seconds"] < row["step_seconds"]
    print(f"exchanging gradients over the network: {row['communication_seconds'] / row['step_seconds']:.0%} of a step")


def test_the_token_is_for_its_owner_alone_and_on_every_machine(cluster):
    laptop, head, workers = cluster
    token = laptop.file(HOME / ".ray/auth_token").read_text()
    for host in (head, *workers):
        for path in (HOME / ".ray/auth_token", HOME / "auth_token"):
            assert host.file(path).read_text() == token
            assert host.file(path).stat().st_mode & 0o777 == 0o600


def test_a_client_without_the_token_is_refused(cluster):
    laptop, head, _ = cluster
    status = f"ray status --address {head.address}:6379"
    assert "3 local.cluster.node" in laptop.run(f"RAY_AUTH_MODE=token {status}").stdout
    stranger = f"export HOME=$(mktemp -d) RAY_AUTH_MODE={{}}; {status}"
    for mode in ("disabled", "token"):
        refused = laptop.run(stranger.format(mode), check=False)
        assert refused.returncode != 0
        assert "local.cluster.node" not in refused.stdout
    wrong = laptop.run(f"export RAY_AUTH_MODE=token RAY_AUTH_TOKEN={'0' * 64}; {status}", check=False)
    assert "InvalidAuthToken" in wrong.stdout + wrong.stderr


def test_the_dashboard_is_on_the_heads_own_loopback_alone(cluster):
    laptop, head, _ = cluster
    assert head.run("exec 3<>/dev/tcp/127.0.0.1/8265", check=False).returncode == 0
    assert laptop.run(f"exec 3<>/dev/tcp/{head.address}/8265", check=False).returncode != 0


def test_ray_job_submit_runs_it_through_the_tunnel(cluster):
    laptop, _, _ = cluster
    laptop.run(f"setsid -f ray dashboard {FILE} > {HOME}/dashboard.log 2>&1")
    try:
        wait_until(lambda: laptop.run("exec 3<>/dev/tcp/127.0.0.1/8265", check=False).returncode == 0)
        done = laptop.run(
            "RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 -- "
            f"python rresnet/experiments/compare.py --address auto {QUICK} "
            f"--recipe tuned --repeats 1 --processes 1 --results-dir {HOME}/job",
            timeout=500,
        )
        listing = "ray job list --address http://127.0.0.1:8265"
        refused = laptop.run(f"export HOME=$(mktemp -d) RAY_AUTH_MODE=disabled; {listing}", check=False)
    finally:
        laptop.run("pkill -f 'ray dashboard'", check=False)
    assert "Run complete: its one trial is ok." in done.stdout
    assert len(fetched(laptop, "job")) == 1
    assert refused.returncode != 0
    assert "Unauthorized" in refused.stdout + refused.stderr


def test_a_worker_that_dies_in_mid_trial_costs_no_row(cluster):
    """The plug is pulled on one of two machines while it measures: its trials go to the other, each ends as one row."""
    laptop, head, (_, doomed) = cluster
    told, script = laptop.file(f"{HOME}/told"), f"{HOME}/submit.sh"
    flags = f"{QUICK.replace('0.2', '15')} --recipe blog tuned --repeats 2 --processes 2 --results-dir lost"
    submit = f"ray submit {FILE} experiments/compare.py --address auto {flags}"
    laptop.file(script).write_text(f"{submit} > {HOME}/told 2>&1; echo ended >> {HOME}/told")
    laptop.run(f"setsid -f bash {script} > /dev/null 2>&1")  # whoever holds the call's pipes is waited for

    # Each machine has two trials of 15 s and more: when the first of the four has its row, both are at one.
    wait_until(lambda: list(head.file(f"{HOME}/lost/trials").glob("[!.]*.parquet")))
    time.sleep(3.0)
    doomed.kill()
    killed = time.time()
    wait_until(lambda: f"{doomed.name} is lost" in told.read_text())
    print(f"\nfound out that {doomed.name} is gone: {time.time() - killed:.0f} s")
    wait_until(lambda: "ended" in told.read_text())
    assert "Run complete: all 4 trials are ok." in told.read_text()
    found = fetched(laptop, "lost")
    assert len(found) == 4
    assert found["trial_id"].is_unique
    assert found["status"].eq("ok").all()
    again = found[found["attempt"] == 2]
    assert len(again) == 1  # the trial that was cut off
    assert again["hostname"].ne(doomed.name).all()
    print(f"measured what it was at: {again['finished_at'].iloc[0].timestamp() - killed:.0f} s after its end")


def test_ray_down_leaves_no_process(cluster):
    laptop, head, workers = cluster
    began = time.monotonic()
    laptop.run(f"ray down -y {FILE}")

    def left():
        return [line for host in (head, workers[0]) for line in host.processes("ray") if "sshd" not in line]

    wait_until(lambda: not left())
    print(f"nothing left after `ray down`: {time.monotonic() - began:.0f} s")
