"""The CPU quota is found in each layout of the control groups, with what it withholds."""

import pytest

from rresnet import cgroup

V2 = {"cpu.max": "{} 100000\n", "cpu.stat": "usage_usec 9000000\nnr_throttled 5\nthrottled_usec 2500000\n"}
V1 = {
    "cpu.cfs_quota_us": "{}\n",
    "cpu.cfs_period_us": "100000\n",
    "cpu.stat": "nr_throttled 5\nthrottled_time 2500000000\n",
}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes groups with their quotas (folder -> files and quota), and what the process is told about its own."""

    def make(own, found):
        monkeypatch.setattr(cgroup, "ROOT", tmp_path / "fs")
        monkeypatch.setattr(cgroup, "OWN", tmp_path / "own")
        (tmp_path / "own").write_text(own)
        for folder, (files, quota) in found.items():
            (tmp_path / "fs" / folder).mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                (tmp_path / "fs" / folder / name).write_text(text.format(quota))
        cgroup.quota.cache_clear()
        return tmp_path / "fs"

    yield make
    cgroup.quota.cache_clear()


@pytest.mark.parametrize(
    ("own", "found", "processors", "of"),
    [
        ("0::/\n", {".": (V2, 150000)}, 1.5, "."),  # a container of its own
        ("0::/\n", {".": (V2, "max")}, None, None),
        ("0::/a/b\n", {".": ({}, 0), "a": (V2, 100000), "a/b": (V2, 300000)}, 1.0, "a"),  # the tightest holds
        ("0::/a\n", {".": ({}, 0), "a": (V2, "max"), "other": (V2, 100000)}, None, None),
        ("0::/../x\n", {".": (V2, 200000)}, 2.0, "."),
        ("4:memory:/m\n1:cpu,cpuacct:/d/1\n", {"cpu,cpuacct": (V1, 250000)}, 2.5, "cpu,cpuacct"),  # the host's path
        ("1:cpu:/a\n0::/\n", {"cpu/a": (V1, 50000), "unified": ({}, 0)}, 0.5, "cpu/a"),
        ("1:cpu:/\n", {"cpu": (V1, -1)}, None, None),
        ("2:cpuset:/\n", {"cpuset": (V2, 100000)}, None, None),
        ("garbage", {".": (V2, 100000)}, None, None),
    ],
)
def test_the_tightest_quota_of_our_groups_holds(groups, own, found, processors, of):
    root = groups(own, found)
    assert cgroup.quota() == (None if processors is None else (processors, root / of))
    assert cgroup.throttled_seconds() == (0.0 if processors is None else 2.5)


def test_a_group_that_tells_nothing_withheld_nothing(groups):
    root = groups("0::/\n", {".": (V2, 100000)})
    assert cgroup.throttled_seconds() == 2.5
    (root / "cpu.stat").write_text("usage_usec 9000000\n")
    assert cgroup.throttled_seconds() == 0.0
    (root / "cpu.stat").unlink()
    assert cgroup.throttled_seconds() == 0.0
