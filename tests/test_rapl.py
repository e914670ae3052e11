"""Processor packages' energy counters, which wrap."""

import itertools

import pytest

from rresnet.quality import rapl
from rresnet.quality.monitor import Monitor

RANGE = 65_713_000_000  # microjoules


@pytest.fixture
def zones(tmp_path, monkeypatch):
    """Writes counters, joules by zone, and returns their folder."""
    monkeypatch.setattr(rapl, "ZONES", tmp_path)
    names = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:2": "psys", "intel-rapl:0:0": "core"}

    def write(**joules):
        for key, value in joules.items():
            zone = tmp_path / key.replace("_", ":").replace("rapl:", "intel-rapl:", 1)
            zone.mkdir(exist_ok=True)
            (zone / "name").write_text(f"{names[zone.name]}\n")
            (zone / "max_energy_range_uj").write_text(f"{RANGE}\n")
            (zone / "energy_uj").write_text(f"{int(value * 1e6)}\n")
        return tmp_path

    return write


def test_packages_are_summed_without_their_parts_and_the_platform_around_them(zones):
    zones(rapl_0=5, rapl_1=2.5, rapl_2=11, rapl_0_0=1)
    counters = rapl.Rapl()
    assert counters.joules() == 0
    zones(rapl_0=6, rapl_1=4.5, rapl_2=31, rapl_0_0=2)
    assert counters.joules() == 3


def test_each_counter_wraps_at_its_range(zones):
    zones(rapl_0=65_700, rapl_1=10)
    counters = rapl.Rapl()
    zones(rapl_0=7, rapl_1=30)
    assert counters.joules() == pytest.approx(13 + 7 + 20)


def test_long_work_loses_no_turn_of_a_counter(zones, monkeypatch):
    seconds = itertools.count(0, rapl.KEEP_UP_SECONDS)
    monkeypatch.setattr(rapl.time, "monotonic", lambda: next(seconds))
    zones(rapl_0=0)
    monitor = Monitor()
    with monitor.watching():
        for joules in (40_000, 14_287, 54_287):  # 80 kJ later, past one turn
            zones(rapl_0=joules)
            monitor.keep_up()
    assert monitor.usage().energy_joules == pytest.approx(54_287 + RANGE / 1e6)


def test_counters_are_not_read_more_often_than_needed(zones, monkeypatch):
    monkeypatch.setattr(rapl.time, "monotonic", lambda: 0.0)
    counters = rapl.Rapl() if zones(rapl_0=1) else None
    monkeypatch.setattr(rapl, "_reading", lambda package: pytest.fail("read"))
    counters.keep_up()


def test_energy_that_can_not_be_read_is_not_known(zones):
    assert rapl.Rapl().joules() is None  # no such counters
    (zones(rapl_0=1) / "intel-rapl:0" / "name").unlink()
    assert rapl.Rapl().joules() is None
    zones(rapl_0=1)
    counters = rapl.Rapl()
    (zones(rapl_0=2) / "intel-rapl:0" / "energy_uj").write_text("garbage")
    assert counters.joules() is None
    zones(rapl_0=3)
    assert counters.joules() is None  # what was used meanwhile is not known
