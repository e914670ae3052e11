import io
from dataclasses import asdict
from types import SimpleNamespace

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from samples import IMAGES, LAPTOP, make_cell

from rresnet.cell import UsageError
from rresnet.config import Settings
from rresnet.experiments import experiment, search
from rresnet.experiments.running import Experiment


def fake_sweep(execute):
    return SimpleNamespace(execute=execute, progress=SimpleNamespace(more=lambda *_: None))


def climb(fits, most, seconds=lambda size: 0.001 * size):
    """Sizes probed where those up to `fits` run."""
    probes = {}
    while (size := search.next_size(probes, most)) is not None:
        assert size not in probes
        probes[size] = seconds(size) if size <= fits else None
    return probes


def test_sizes_double_until_one_does_not_fit_and_then_close_in():
    assert list(climb(700, 10_000)) == [16, 32, 64, 128, 256, 512, 1024, 768, 640, 704]
    assert list(climb(700, 300)) == [16, 32, 64, 128, 256, 300]


def test_a_small_memory_is_found_downwards():
    assert list(climb(5, 10_000)) == [16, 8, 4, 6, 5]
    assert list(climb(0, 10_000)) == [16, 8, 4, 2, 1]


def test_no_size_is_tried_whose_step_would_take_too_long():
    assert max(climb(10**9, 10**9, seconds=lambda size: size / 100)) == 16 * 2**5  # 5 s; the next would take 10.2 s


def test_doublings_go_together_and_what_follows_a_failure_does_not():
    assert search.next_sizes({16: 0.1}, 10_000) == [32, 64, 128]
    assert search.next_sizes({16: 0.1}, 50) == [32, 50]
    assert search.next_sizes({16: 3.0}, 10_000) == [32]  # 6 s; the next would take 12
    assert search.next_sizes({16: 0.1, 32: None}, 10_000) == [24]
    assert search.next_sizes({}, 10_000) == [16]
    assert search.next_sizes({16: None}, 10_000) == [8]


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_the_largest_is_known_to_an_eighth(fits, most):
    probes = climb(fits, most, seconds=lambda size: 1e-6)
    largest = max(size for size, ran in probes.items() if ran)
    assert largest <= min(fits, most)
    assert largest == most or min(fits, most) <= largest * (1 + 1 / search.FINENESS) + 1
    assert max(probes) <= most


def rows(*probes, **changes):
    found = []
    for size, status, rate in probes:
        cell = make_cell(batch_size=size, **changes)
        found.append(
            {
                **asdict(cell),
                "status": status,
                "images_per_second": rate,
                "step_seconds": 0.01,
                "attempt": 1,
                "quality_flags": None,
                "error_message": "no memory",
            }
        )
    return pd.DataFrame(found)


def test_the_fastest_and_the_largest_are_found_and_told():
    found = search.result(
        rows((16, "ok", 100.0), (32, "ok", 150.0), (64, "ok", 140.0), (128, "out_of_memory", None)), most=1000
    )
    assert found.sizes == (32, 64)
    assert "the largest batch that ran is 64 (128 ended out_of_memory)" in found.summary[0]
    assert "32 with 150 images/s" in found.summary[0]
    assert found.fits(make_cell(batch_size=64))
    assert not found.fits(make_cell(batch_size=65))
    assert not found.fits(make_cell(batch_size=16, recipe="tuned"))  # never probed


def test_each_series_has_its_own_largest():
    small = rows((16, "ok", 10.0), (32, "error", None), precision="bf16")
    found = search.result(pd.concat([rows((16, "ok", 1.0), (32, "ok", 2.0)), small]), most=32)
    assert found.sizes == (16, 32)
    assert "the data set has no more images" in found.summary[0]
    assert not found.fits(make_cell(batch_size=32, precision="bf16"))


def test_series_are_told_apart_by_what_differs():
    found = search.result(pd.concat([rows((16, "ok", 1.0), execution=how) for how in ("eager", "compile")]), most=16)
    names = [line.partition(":")[0] for line in found.summary]
    assert names == ["cpu blog execution eager", "cpu blog execution compile"]
    (line,) = search.result(rows((16, "ok", 1.0)), most=16).summary
    assert line.startswith("cpu blog: the largest batch that ran is 16")


def test_a_single_probe_is_a_search_too():
    found = search.result(rows((16, "ok", 1.0)), most=1000)
    assert found.sizes == (16,)
    assert found.fits(make_cell(batch_size=16))


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("out_of_memory", r"runs \(batch 1 ended out_of_memory: no memory\); give a smaller --model or --image-size$"),
        ("error", r"runs \(batch 1 ended error: no memory\); mend that, then add --retry failed$"),
    ],
)
def test_nothing_that_fits_is_a_wrong_request(status, told):
    probed = rows((2, status, None), (1, status, None)).assign(error_message="no memory\nin line 3")
    with pytest.raises(UsageError, match=told):
        search.result(probed, most=100)


@pytest.mark.parametrize("status", ["killed", "error"])
def test_a_probe_that_may_have_failed_by_chance_is_repeated_once(status, monkeypatch):
    ran, told = [(16, status, 1)], []  # the first size, which the plan has run

    def so_far(sweep):
        last = {size: (ended, attempt) for size, ended, attempt in ran}
        probed = rows(*((size, ended, 10.0) for size, (ended, _) in last.items()))
        return probed.assign(attempt=[attempt for _, attempt in last.values()])

    def execute(trials):
        for size in (trial.cell.batch_size for trial in trials):
            attempt = 1 + max((made for of, _, made in ran if of == size), default=0)
            fails = size > 100 or (size == 32 and attempt == 1)
            ran.append((size, status if fails else "ok", attempt))

    monkeypatch.setattr(search, "rows_so_far", so_far)
    sweep = fake_sweep(execute)
    sweep.progress.more = lambda count, why: told.append(why)
    search.probe(sweep, [make_cell(batch_size=16)], most=10_000)
    made = {size: attempt for size, _, attempt in ran}
    assert made == {16: 2, 32: 2, 64: 1, 128: 2, 96: 1, 112: 2, 104: 2}
    assert told[0] == "Probing batch size 16 again, in case it was chance that one failed"
    assert told[1] == "Probing batch sizes 32, 64, 128"
    assert told[2] == "Probing batch sizes 32, 128 again, in case it was chance that one failed"


def test_the_first_probes_are_one_repeat():
    begin = search.first(Settings(batch_size="auto", repeats=12, aa=True))
    assert (begin.batch_size, begin.repeats, begin.aa, begin.retry) == ((search.FIRST_SIZE,), 1, False, None)
    again = {retry: search.first(Settings(retry=retry)).retry for retry in ("failed", "disturbed", "all")}
    assert again == {"failed": "failed", "disturbed": None, "all": None}  # others could choose another run


@pytest.mark.parametrize(
    ("again", "expected"),
    [
        ((), []),  # known sizes are not probed again
        ((16,), []),  # the first size is planned, and has been
        ((48, 64), [[48, 64], [128, 256, 512], [384], [320], [288]]),  # 64 runs now, so that the search goes on
    ],
)
def test_probes_are_run_again_where_that_is_asked_for(again, expected, monkeypatch):
    status, ran = {16: "ok", 32: "ok", 64: "killed", 48: "timeout", 40: "ok", 44: "ok"}, []
    monkeypatch.setattr(
        search,
        "rows_so_far",
        lambda _: rows(*((size, ended, 100.0) for size, ended in status.items())).assign(attempt=2),
    )

    def execute(trials):
        ran.append([trial.cell.batch_size for trial in trials])
        status.update({size: "ok" if size < 280 else "out_of_memory" for size in ran[-1]})

    ids = [search._trial(make_cell(), size).trial_id for size in again]
    search.probe(fake_sweep(execute), [make_cell(batch_size=search.FIRST_SIZE)], ids, most=10_000)
    assert ran == expected


def test_workers_share_the_images(monkeypatch):
    probed = []

    def so_far(sweep):
        return rows(*((size, "ok", 100.0) for size in [16, *probed]), num_workers=2)

    monkeypatch.setattr(search, "rows_so_far", so_far)
    sweep = fake_sweep(lambda trials: probed.extend(trial.cell.batch_size for trial in trials))
    search.probe(sweep, [make_cell(num_workers=2)], most=100)
    assert probed == [32, 50]


def test_the_probes_are_a_run_of_their_own_and_complete_ones_of_this_environment_are_reused(monkeypatch):
    probed = rows((16, "ok", 100.0), (32, "out_of_memory", None), (24, "ok", 90.0))
    asked = []

    def measured(what, settings, setup, extend, *, reuse):
        asked.append((what.name, settings.batch_size, settings.retry, reuse))
        return probed

    monkeypatch.setattr(experiment.running, "measured", measured)
    setup = SimpleNamespace(images=IMAGES, console=Console(quiet=True))
    _, settings = experiment._find_batch_sizes(Experiment(name="compare"), Settings(batch_size="auto"), setup)
    assert asked == [("compare-sizes", (16,), None, True)]
    assert settings.batch_size == (16, 24)


def test_machine_and_data_are_told_once_though_the_search_is_a_run_of_its_own(monkeypatch):
    ran = []

    def measured(what, *of, **how):
        ran.append(what.name)
        return rows((16, "ok", 100.0), (32, "out_of_memory", None), (24, "ok", 90.0))

    monkeypatch.setattr(experiment.running, "measured", measured)
    monkeypatch.setattr(experiment, "_answer", lambda *of, **how: None)
    console = Console(file=io.StringIO(), width=140)
    setup = SimpleNamespace(images=IMAGES, console=console, machines=[SimpleNamespace(hardware=LAPTOP)])
    assert not experiment._measure(Experiment(name="compare"), Settings(batch_size="auto"), setup)
    assert ran == ["compare-sizes", "compare"]
    told = console.file.getvalue()
    assert (told.count("laptop: A CPU, 8 CPUs, no GPU\n"), told.count("resnet50 on 1,000 training")) == (1, 1)


@pytest.mark.parametrize("values", [[None], [2, None]])
def test_an_axis_that_may_be_none_has_its_series_found_again(monkeypatch, values):
    monkeypatch.setattr(search, "_APART", ("batch_size", "copy"))  # epochs stands for an axis of one's own
    cells, probed = [make_cell(epochs=value) for value in values], []

    def so_far(sweep):
        ran = [rows((16, "ok", 100.0), epochs=value) for value in values]
        ran += [rows((cell.batch_size, "ok", 100.0), epochs=cell.epochs) for cell in probed]
        return pd.concat(ran).astype({"epochs": float})  # as a table with a missing number is read

    def execute(trials):
        probed.extend(trial.cell for trial in trials)
        assert len(probed) <= 2 * len(values), "probed without an end"

    monkeypatch.setattr(search, "rows_so_far", so_far)
    search.probe(fake_sweep(execute), cells, most=64)
    assert [cell.batch_size for cell in probed] == sorted([32, 64] * len(values))
    assert all(search.result(so_far(None), most=64).fits(cell) for cell in cells)


def test_small_data_is_probed_from_what_it_has():
    assert search.first(Settings(batch_size="auto"), most=10).batch_size == (10,)
    assert search.first(Settings(batch_size="auto"), most=10_000).batch_size == (search.FIRST_SIZE,)


def test_a_slow_probe_that_other_work_disturbed_is_repeated_once_before_it_ends_the_search(monkeypatch):
    ran, idle = {16: 1}, []  # size -> attempts

    def so_far(sweep):
        probed = rows(*((size, "ok", 10.0) for size in ran)).assign(attempt=list(ran.values()))
        slow = probed["attempt"].eq(1) & probed["batch_size"].ge(64) & bool(not idle)
        return probed.assign(
            step_seconds=slow.map({True: 8.0, False: 0.01}),
            quality_flags=slow.map({True: ["few_windows", "cpu_starved"], False: None}),
        )

    def execute(trials):
        for trial in trials:
            ran[trial.cell.batch_size] = ran.get(trial.cell.batch_size, 0) + 1
            idle.extend([True] * (ran[trial.cell.batch_size] > 1))

    monkeypatch.setattr(search, "rows_so_far", so_far)
    sweep, told = fake_sweep(execute), []
    sweep.progress.more = lambda count, why: told.append(why)
    search.probe(sweep, [make_cell(batch_size=16)], most=1000)
    assert ran == {16: 1, 32: 1, 64: 1, 128: 2, 256: 1, 512: 1, 1000: 1}
    assert told[0] == "Probing batch sizes 32, 64, 128"
    assert told[1] == "Probing batch size 128 again, since other work disturbed it"
    assert all("again" not in one for one in told[2:])
    ran, idle = {16: 2}, []
    monkeypatch.setattr(search, "_next", lambda *_: [])
    search.probe(fake_sweep(execute), [make_cell(batch_size=16)], most=1000)
    assert ran == {16: 2}


def test_the_summary_says_how_many_probes_were_disturbed():
    probed = rows((16, "ok", 100.0), (32, "ok", 150.0))
    probed["quality_flags"] = [["foreign_load"], ["few_windows"]]
    (told,) = search.result(probed, most=1000).summary
    assert told.endswith("is 32 with 150 images/s; other work disturbed 1 of them, so a larger one may do")
