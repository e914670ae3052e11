"""Ratios of rows that were not measured side by side: of two machines."""

from dataclasses import replace

import pandas as pd
import pytest
from tables import BLOG, GPU, QUIET, scaled, side, trials

import rresnet
from rresnet.analysis import unpaired


def test_machines_are_compared_unpaired_when_asked():
    laptop = side((BLOG, QUIET), hostname="laptop")
    cluster = side((GPU, scaled(30)), run_id="r2", hostname="cluster", gpu_name="NVIDIA A100", cpu_model="B CPU")
    both = pd.concat([laptop, cluster])
    row = unpaired.speedup_across_machines(both, over="device", reference="cpu").iloc[0]
    assert (row["machine"], row["reference_machine"], row["repeats"]) == ("cluster", "laptop", 6)
    assert row["speedup"] == pytest.approx(30)
    assert row["distinguishable"]
    for told in (
        "precision: tf32 vs fp32",
        "hostname: cluster vs laptop",
        "cpu_model: B CPU vs A CPU",
        "gpu_name: NVIDIA",
    ):
        assert told in row["differs"]
    with pytest.raises(ValueError, match="no rows to compare"):  # paired stays the default
        rresnet.speedup(both, over="device", reference="cpu")


def test_bounds_are_numbers_where_no_interval_is_claimed():
    laptop = side((BLOG, [100.0] * 2), hostname="laptop")
    cluster = side((GPU, [300.0] * 2), run_id="r2", hostname="cluster", cpu_model="B CPU")
    found = unpaired.speedup_across_machines(pd.concat([laptop, cluster]), over="device", reference="cpu")
    assert [str(found[column].dtype) for column in ("low", "high")] == ["float64"] * 2
    assert found["low"].isna().all()


def test_an_empty_table_is_refused_by_what_it_lacks():
    with pytest.raises(ValueError, match="trials lack the columns status, run_id"):
        unpaired.speedup_across_machines(pd.DataFrame(), over="device", reference="cpu")


def test_code_that_two_machines_do_not_share_is_told():
    here, there = trials((BLOG, [100.0] * 3), hostname="here"), trials((GPU, [400.0] * 3), hostname="there")
    found = [
        unpaired.speedup_across_machines(
            pd.concat([here.assign(git_commit="aaa"), there.assign(git_commit=commit)]), over="device", reference="cpu"
        )["differs"].item()
        for commit in ("aaa", "bbb", None)
    ]
    assert ["git_commit: bbb vs aaa" in differs for differs in found] == [False, True, False]


def test_unlike_software_across_machines_is_refused_by_name_unless_allowed():
    laptop = side((BLOG, QUIET), hostname="laptop", torch_version="2.11")
    both = pd.concat([laptop, side((GPU, QUIET), run_id="r2", hostname="cluster", torch_version="2.15")])
    with pytest.raises(ValueError, match=r'different torch_version \(2\.15 vs 2\.11\).*allow=\("torch_version",\)'):
        unpaired.speedup_across_machines(both, over="device", reference="cpu")
    found = unpaired.speedup_across_machines(both, over="device", reference="cpu", allow=("torch_version",))
    assert "torch_version: 2.15 vs 2.11" in found.iloc[0]["differs"]
    threads = both.assign(torch_version="2.15", cpu_threads=[2] * 6 + [8] * 6)
    with pytest.raises(ValueError, match=r"they differ in cpu_threads \(8 against 2\)"):
        unpaired.speedup_across_machines(threads, over="device", reference="cpu")


def test_one_machine_is_left_to_pairs():
    with pytest.raises(ValueError, match=r"all rows ran on one machine.*use rresnet\.speedup"):
        unpaired.speedup_across_machines(side((BLOG, QUIET), (GPU, QUIET)), over="device", reference="cpu")


def test_two_machines_of_one_hostname_are_told_by_their_processors():
    one = side((BLOG, QUIET))
    other = side((GPU, scaled(2)), run_id="r2", cpu_model="B CPU", gpu_name="NVIDIA A100")
    (row,) = unpaired.speedup_across_machines(pd.concat([one, other]), "device", "cpu").to_dict("records")
    assert (row["machine"], row["reference_machine"], row["speedup"]) == ("vm", "vm", pytest.approx(2))
    assert "cpu_model: B CPU vs A CPU" in row["differs"]
    for unknown in (None, "A CPU"):
        alike = pd.concat([one, other.assign(cpu_model=unknown)])
        with pytest.raises(ValueError, match=r"all rows ran on one machine.*give the rows of one of them another"):
            unpaired.speedup_across_machines(alike, "device", "cpu")
    with pytest.raises(ValueError, match=r"run_id \(r2 against r1\) \(of two machines: rresnet\.speedup_across"):
        rresnet.speedup(alike, "device", "cpu")


def test_the_noise_floor_holds_across_machines_and_copies_are_no_settings():
    again = replace(BLOG, copy=1)
    laptop = side((BLOG, QUIET), (again, scaled(1.4)), hostname="laptop")
    cluster = side((GPU, scaled(1.2)), run_id="r2", hostname="cluster")
    (row,) = unpaired.speedup_across_machines(pd.concat([laptop, cluster]), "device", "cpu").to_dict("records")
    assert row["speedup"] == pytest.approx(1.2)
    assert row["distinguishable"] is False
    (row,) = unpaired.speedup_across_machines(
        pd.concat([laptop[laptop["copy"] == 0], cluster]), "device", "cpu"
    ).to_dict("records")
    assert row["distinguishable"] is True
