"""A Ray of our own: who can reach it, who holds its token, and what becomes of somebody else's."""

import json
import os
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

LISTENING = """
import json, sys, psutil
from rresnet import cluster, hardware
with cluster.connect(None, hardware.probe()):
    import ray
    ray.get(ray.remote(lambda: 1).remote())
    me = psutil.Process()
    found = {}
    for process in [me, *me.children(recursive=True)]:
        for one in process.net_connections("inet"):
            if one.status == psutil.CONN_LISTEN:
                found.setdefault(one.laddr.ip, []).append(process.name())
    json.dump(found, sys.stdout)
"""


def in_home(home, *line, **options):
    environment = {**os.environ, "HOME": str(home), "RAY_TMPDIR": str(home)}
    environment.pop("RAY_ADDRESS", None)
    return subprocess.run(line, env=environment, text=True, capture_output=True, timeout=600, **options)


def test_its_servers_listen_on_loopback_alone_and_its_token_is_its_owners(tmp_path):
    found = json.loads(in_home(tmp_path, sys.executable, "-c", LISTENING).stdout)
    servers = {name for names in found.values() for name in names}
    assert {"gcs_server", "raylet"} <= servers
    listening = [ip_address(address) for address in found]
    assert all((getattr(one, "ipv4_mapped", None) or one).is_loopback for one in listening), found
    token = tmp_path / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64


def test_a_token_that_is_there_is_kept_and_closed_to_others(tmp_path, monkeypatch):
    from rresnet import cluster

    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    cluster._make_token()
    (tmp_path / ".ray" / "auth_token").chmod(0o644)
    first = (tmp_path / ".ray" / "auth_token").read_text()
    cluster._make_token()
    assert (tmp_path / ".ray" / "auth_token").read_text() == first
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
