"""Machines that are not there yet: a real autoscaler, whose machines are processes here, is asked for them."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from theirs import Theirs, in_home

STUB = Path(__file__).parents[2] / "benchmarks" / "stub_run.py"
HEAD = "f" * 51 + "00000"
TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
NONE = {f"{what}_commands": [] for what in ("initialization", "setup", "head_setup", "worker_setup")}
NONE |= {f"{what}_start_ray_commands": [] for what in ("head", "worker")}
CONFIG = {
    "cluster_name": "here",
    "max_workers": 2,
    "provider": {"type": "fake_multinode", "head_node_id": HEAD},
    "auth": {},
    "head_node_type": "ray.head.default",
    "available_node_types": TYPES,
    "idle_timeout_minutes": 10,
    "file_mounts": {},
    "cluster_synced_files": [],
    "file_mounts_sync_continuously": False,
    **NONE,
}


FLAGS = ("--seconds", "0.05", "--processes", "1", "--repeats", "2")


@pytest.fixture
def home(tmp_path):
    """The head machine's."""
    home = tmp_path / "home"
    home.mkdir()
    return home


def leave_file(home, address):
    """As `ray up` leaves its own on the head."""
    config = {**CONFIG, "provider": {**CONFIG["provider"], "gcs_address": address}}
    (home / "ray_bootstrap_config.yaml").write_text(json.dumps(config))  # JSON is YAML


def test_a_machine_that_can_come_is_waited_for_and_measures(home, tmp_path):
    theirs = Theirs(home, "--num-cpus=0", f"--autoscaling-config={home / 'ray_bootstrap_config.yaml'}")
    theirs.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    leave_file(home, theirs.address)
    with theirs:
        line = [sys.executable, str(STUB), *FLAGS, "--wait-seconds", "90", "--results-dir", str(tmp_path / "out")]
        done = in_home(home, *line, "--address", theirs.address)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert re.search(r"waiting for 1 machine with a CPU, at most 90 s .*asked the cluster's autoscaler", said), said
    assert pd.read_parquet(tmp_path / "out" / "trials")["status"].eq("ok").all()
