"""The command with results in object storage, on a real server of its protocol and a real local Ray."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pyarrow.fs as pa_fs
import pytest

from rresnet.tables import place

pytestmark = pytest.mark.integration
STUB = Path(__file__).parents[2] / "benchmarks" / "stub_run.py"


@pytest.fixture
def bucket(monkeypatch):
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    system, path = pa_fs.FileSystem.from_uri("s3://rows?allow_bucket_creation=true")
    system.create_dir(path)
    yield "s3://rows"
    server.stop()


def test_a_killed_command_goes_on_from_what_stands_there(bucket, tmp_path):
    url = f"{bucket}/some/folder"
    line = [sys.executable, str(STUB), "--repeats", "10", "--processes", "1", "--seconds", "0.3", "--results-dir", url]
    first = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    kept = place.at(url)
    while not kept.names("trials") and first.poll() is None:
        time.sleep(0.2)
    time.sleep(1)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = pd.read_parquet(f"{url}/trials")
    assert 0 < len(before) < 40
    again = subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert "was left locked" in again.stdout  # the lock of the dead is told, and outlived
    assert f"{len(before)} trials are done" in again.stdout
    assert f"Rows: {url}/trials" in again.stdout
    after = pd.read_parquet(f"{url}/trials").set_index("trial_id")
    assert len(after) == 40
    assert after.index.is_unique
    assert after["status"].eq("ok").all()
    assert after.loc[before["trial_id"], "started_at"].tolist() == before["started_at"].tolist()  # none was run twice
    assert [name.partition(".")[2] for name in kept.names("runs")] == ["json"]  # and no lock is left
    assert os.listdir(tmp_path) == []  # nothing went to a folder of that name


def test_a_place_that_is_none_is_one_message_before_anything_starts(bucket, tmp_path):
    line = [sys.executable, str(STUB), "--results-dir", "s3://no-such-bucket/x"]
    refused = subprocess.run(line, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: can't use s3://no-such-bucket/x (NO_SUCH_BUCKET")
    assert refused.stderr.count("\n") == 1
