"""A Ray of our own: who can reach it, who holds its token, and what becomes of somebody else's."""

import json
import re
import subprocess
import sys
import time
from ipaddress import ip_address
from pathlib import Path

import pandas as pd
import pytest
from theirs import Theirs, environment, in_home

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]

LISTENING = """
import json, sys, psutil
from rresnet import hardware
from rresnet.runner import cluster
with cluster.connect(None, hardware.probe()):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    found, lines = {}, [" ".join(process.cmdline()) for process in me.children(recursive=True)]
    for process in [me, *me.children(recursive=True)]:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                found.setdefault(one.laddr.ip, []).append(process.name())
    json.dump([found, lines], sys.stdout)
"""

DIES = """
import sys, time, psutil
from rresnet import hardware
from rresnet.runner import cluster
with cluster.connect(None, hardware.probe()):
    (server,) = (process for process in psutil.Process().children() if process.name() == sys.argv[1])
    server.kill()
    time.sleep(60)
"""


IMPATIENT = f"""
import runpy
from rresnet.runner import cluster
cluster.LOST_SECONDS = 4.0
runpy.run_path({str(ROOT / "benchmarks" / "stub_run.py")!r}, run_name="__main__")
"""


@pytest.mark.parametrize("server", ["raylet", "gcs_server"])
def test_where_a_process_of_it_dies_the_command_says_so_at_once(tmp_path, server):
    done = in_home(tmp_path, sys.executable, "-c", DIES, server)
    assert (done.returncode, "error: a process of Ray's has died" in done.stderr) == (2, True)


def test_its_servers_listen_on_loopback_alone_and_its_token_is_its_owners(tmp_path):
    found, lines = json.loads(in_home(tmp_path, sys.executable, "-c", LISTENING).stdout)
    servers = {name for names in found.values() for name in names}
    assert {"gcs_server", "raylet"} <= servers
    listening = [ip_address(address) for address in found]
    assert all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in listening), found
    unused = [line for line in lines if re.search(r"/(dashboard|monitor|log_monitor)\.py", line)]
    assert not unused
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


def test_ray_has_all_its_helpers_again_afterwards_and_where_it_fails_without(monkeypatch):
    import ray
    from ray._private import ray_constants, services
    from ray._private.node import Node
    from ray.experimental import internal_kv

    from rresnet.runner import cluster

    def helpers():
        return services.start_api_server, Node.start_monitor, Node.start_log_monitor

    all_of_them, at_start, put = helpers(), [], []

    def init(*of, **how):
        at_start.append(helpers())
        if len(at_start) == 1:
            assert services.start_api_server(False, raise_on_failure=False) == ("", None)
            raise TypeError("another version")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(internal_kv, "_internal_kv_put", lambda key, value, **where: put.append((key, value)))
    cluster._start()
    assert not set(at_start[0]) & set(all_of_them)
    assert at_start[1] == helpers() == all_of_them
    assert put == [(ray_constants.DASHBOARD_ADDRESS, "localhost:0")]  # or the agent asks for it every second


def test_a_token_that_is_there_is_kept_and_closed_to_others(tmp_path, monkeypatch):
    from rresnet.runner import cluster

    monkeypatch.setenv("HOME", str(tmp_path))
    cluster._make_token()
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    first = (tmp_path / ".ray" / "auth_token").read_text()
    cluster._make_token()
    assert (tmp_path / ".ray" / "auth_token").read_text() == first
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600


def test_a_home_that_can_not_be_written_and_a_long_tmpdir_do_not_keep_it_from_starting(tmp_path):
    long = tmp_path / ("scheduler" * 9)
    long.mkdir()
    away = {**environment("/proc"), "TMPDIR": str(long)}
    done = subprocess.run([sys.executable, "-c", LISTENING], env=away, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert not list(long.iterdir())


def test_somebody_elses_ray_is_joined_and_left_and_never_ended(tmp_path):
    """Real Ray processes of a user: a run of our own beside them, one that joins them, and one whose cluster dies."""
    home = tmp_path / "home"
    home.mkdir()
    theirs = Theirs(home, "--num-cpus=2")
    with theirs:
        stub = [sys.executable, "-c", IMPATIENT, "--seconds", "0.05", "--processes", "1"]
        for flags in ([], ["--address", theirs.address]):
            done = in_home(home, *stub, "--repeats", "1", "--results-dir", str(tmp_path / "out"), *flags)
            assert done.returncode == 0, done.stderr
            assert all(process.is_running() for process in theirs.processes)
        assert len(pd.read_parquet(tmp_path / "out" / "trials")) == 8
        running = subprocess.Popen(
            [*stub, "--repeats", "400", "--results-dir", str(tmp_path / "lost"), "--address", theirs.address],
            env=environment(home),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not list((tmp_path / "lost").rglob("trials/[!.]*.parquet")) and running.poll() is None:
            time.sleep(0.1)
        theirs.end()
        said = running.communicate(timeout=300)[1]
    assert running.returncode == 2, said
    assert "the same command" in said
    assert "Traceback" not in said
    kept = pd.read_parquet(tmp_path / "lost" / "trials")
    assert 0 < len(kept) < 1600
    assert kept["status"].eq("ok").all()  # the rest has no row: it can still be measured
